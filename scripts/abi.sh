#!/usr/bin/env bash
# The binary interface of libqengine.so against the committed one, tests/abi/libqengine.abi (abigail-tools).
#   scripts/abi.sh check    exit 1 when a function or type of the public headers changed or is gone; new ones are listed
#   scripts/abi.sh update   writes the interface as it is now: after new functions, or with a change that is meant.
#                           A change that is meant needs a new SONAME (the minor version while 0.x) and a CHANGELOG line.
set -u
cd "$(dirname "$0")/.." || exit 1
committed=tests/abi/libqengine.abi
build=build/abi
log=$build.log
now=$build/libqengine.abi
mkdir -p build "$(dirname "$committed")"
# Types come from debug information, which the optimized build goes without.
{ cmake -G Ninja -S . -B $build -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS=-w -DQE_CUDA=OFF -DQE_EMULATOR=OFF -DQE_BUILD_TESTS=OFF \
    -DQE_BUILD_PROGRAMS=OFF && cmake --build $build --target qengine; } >$log 2>&1 || { tail -n 20 $log; exit 1; }
# What the public headers declare; places in source files are no part of it.
set -o pipefail
abidw --headers-dir include/qengine --exported-interfaces-only --drop-private-types --type-id-style hash --no-elf-needed \
    --no-corpus-path --no-comp-dir-path --no-write-default-sizes --no-parameter-names $build/libqengine.so |
    sed -E "s/ (comp-dir-path|filepath|line|column)='[^']*'//g; s# path='$PWD/# path='#" >$now || exit 1
case ${1:-check} in
update)
    cp $now $committed
    echo "$committed written; commit it with the change"
    ;;
check)
    [ -f $committed ] || { echo "$committed is missing; scripts/abi.sh update writes it"; exit 1; }
    if ! abidiff --no-added-syms $committed $now; then
        echo "The binary interface changed. If that is meant: see the head of scripts/abi.sh, then scripts/abi.sh update"
        exit 1
    fi
    added=$(abidiff $committed $now | grep '\[A\]')
    [ -z "$added" ] || printf 'new since tests/abi was written (scripts/abi.sh update lists them):\n%s\n' "$added"
    ;;
*)
    sed -n '2,6p' "$0"
    exit 2
    ;;
esac
