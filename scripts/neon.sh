#!/usr/bin/env bash
# Compiles the native library for 64-bit Arm (NEON) and runs the program of tests/csrc on it, under QEMU.
# Needs a cross compiler and qemu-user; as root on Debian or Ubuntu it installs them, else it says what to install.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

compiler=aarch64-linux-gnu-g++
c_compiler=aarch64-linux-gnu-gcc
emulator() { command -v qemu-aarch64 || command -v qemu-aarch64-static; }
skip() {
    echo "neon: SKIPPED, $*"
    exit 0
}
there() { command -v "$compiler" >/dev/null && emulator >/dev/null; }

packages="g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user"
if [ "$(uname -m)" = aarch64 ]; then
    compiler="${CXX:-c++}"
    c_compiler="${CC:-cc}"
    emulator() { echo env; } # it runs as it is
elif ! there; then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || skip "there is no $compiler or qemu-aarch64: install $packages"
    echo "neon: installing $packages"
    log=$(mktemp)
    trap 'rm "$log"' EXIT
    options=(-q -o Acquire::Retries=0 -o Acquire::http::Timeout=10 -o Acquire::https::Timeout=10)
    { timeout 120 apt-get "${options[@]}" update &&
        DEBIAN_FRONTEND=noninteractive timeout 300 apt-get "${options[@]}" install -y --no-install-recommends $packages; } >"$log" 2>&1 ||
        skip "$packages could not be installed: $(tail -n 1 "$log")"
    there || skip "$packages are installed, but there is no $compiler or qemu-aarch64"
fi
command -v cmake >/dev/null || skip "there is no cmake on the path"

build=build/neon
cmake -S csrc -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    "-DCMAKE_CXX_COMPILER=$compiler" >/dev/null
cmake --build "$build" --parallel "$(nproc)" >/dev/null
CC="$c_compiler" CXX="$compiler" tests/csrc/build.sh "$build/libnvsubq_cpu.so" "$build/program" -pthread
run=("$(emulator)")
[ "$compiler" = aarch64-linux-gnu-g++ ] && run+=(-L /usr/aarch64-linux-gnu)
"${run[@]}" "$build/program"
