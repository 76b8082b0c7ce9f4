#!/usr/bin/env bash
# Configure, build and test one preset; prints what was skipped and why, then 'N passed, N failed, N skipped'.
# Usage: scripts/test.sh [preset] [ctest options...]
set -u
cd "$(dirname "$0")/.." || exit 1
preset=${1:-default}
[ $# -gt 0 ] && shift
jobs=${QE_JOBS:-$(nproc)}
build=build/$preset

scripts/packages.sh || exit 1
mkdir -p build
cmake --preset "$preset" >"build/configure-$preset.log" 2>&1 || { cat "build/configure-$preset.log"; exit 1; }
cmake --build "$build" -j "$jobs" || exit 1
rm -rf "$build/test-results"
mkdir -p "$build/test-results"
ctest --test-dir "$build" --output-on-failure --no-tests=error -j "$jobs" "$@"
status=$?
scripts/summary.sh "$build"
exit $status
