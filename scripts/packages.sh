#!/usr/bin/env bash
# Installs the Debian/Ubuntu packages the build needs, as root or with passwordless sudo; otherwise prints the one
# command and stops. Does nothing when all are there. Arguments are further packages, of checks and not of the build.
set -u
packages="build-essential cmake ninja-build pkg-config libjansson-dev libpcre2-dev libutf8proc-dev libopenblas-dev
    libgtest-dev libsimde-dev python3-venv $*"
command -v dpkg-query >/dev/null || exit 0      # not Debian: CMake names what is missing
missing=
for p in $packages; do
    dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' && continue
    # A tool may come from elsewhere than its package.
    case $p in
    cmake) command -v cmake >/dev/null && continue ;;
    ninja-build) command -v ninja >/dev/null && continue ;;
    pkg-config) command -v pkg-config >/dev/null && continue ;;
    build-essential) command -v gcc >/dev/null && command -v g++ >/dev/null && command -v make >/dev/null && continue ;;
    python3-venv) python3 -c 'import venv, ensurepip' 2>/dev/null && continue ;;
    esac
    missing="$missing $p"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then
    run=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    run=sudo
else
    echo "Packages are missing. Install them, then run this again:" >&2
    echo "  sudo apt-get install -y$missing" >&2
    exit 1
fi
echo "Installing:$missing"
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
$run apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 ||
    { $run apt-get update -qq && $run apt-get install -y -qq --no-install-recommends $missing >/dev/null; } ||
    { echo "Installing failed: apt-get install -y$missing" >&2; exit 1; }
