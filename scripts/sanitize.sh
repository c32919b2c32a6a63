#!/usr/bin/env bash
# The native library under AddressSanitizer and UndefinedBehaviorSanitizer, its thread pool under ThreadSanitizer too.
#   scripts/sanitize.sh          every instruction set, all tests of the native backend (minutes)
#   scripts/sanitize.sh quick    one instruction set, the C program and a part of the tests (what CI runs)
# Further arguments go to pytest. Needs GCC or Clang, CMake and the environment of scripts/test.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
mode=full
if [ "${1:-}" = quick ]; then
    mode=quick
    shift
fi
for tool in cmake "${CC:-cc}" "${CXX:-c++}"; do
    if ! command -v "$tool" >/dev/null; then
        echo "sanitize: SKIPPED, there is no $tool on the path"
        exit 0
    fi
done
ensure_environment test

export ASAN_OPTIONS=detect_leaks=0 # torch and Python hold on to much when they end
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
build="build/sanitize-$mode"
levels="baseline;avx2;avx512"
options=()
files=(tests/ops/test_native_*.py tests/cores/test_fused_steps.py)
if [ "$mode" = quick ]; then
    levels=baseline
    # Without what costs much and has a sibling that touches memory in the same way, or touches none.
    options=(-m "not slow" -k "not fork and not 4097 and not environment and not float16 and not gradcheck and not 300-64")
    files=(tests/ops/test_native_[!l]*.py tests/ops/test_native_laws.py tests/cores/test_fused_steps.py)
fi
cmake -S csrc -B "$build" -DNVSUBQ_SANITIZE=address,undefined "-DNVSUBQ_LEVELS=$levels" >/dev/null
cmake --build "$build" --parallel "$(nproc)" >/dev/null
library="$PWD/$build/libnvsubq_cpu.so"

echo "sanitize: the thread pool"
for sanitizers in thread address,undefined; do
    "${CXX:-c++}" -std=c++17 -O1 -g "-fsanitize=$sanitizers" -pthread tests/csrc/pool/race.cpp csrc/cpu/pool.cpp -o "$build/race"
    "$build/race"
done

echo "sanitize: a program that calls the C interface"
tests/csrc/build.sh "$library" "$build/program" -O0 -fsanitize=address,undefined
"$build/program"
if "$build/program" overrun >/dev/null 2>&1; then
    fail "a write past the end of a tensor was not noticed: the sanitizers are not at work"
fi

echo "sanitize: the tests of the native backend"
export NVSUBQ_LIBRARY="$library"
# Python is not built with the sanitizers, so their runtime has to be there before it.
preload=""
for name in libasan.so libubsan.so libstdc++.so.6; do
    path=$("${CXX:-c++}" "-print-file-name=$name")
    [ -e "$path" ] && preload="$preload $path"
done
export LD_PRELOAD="$preload"
"$VENV/bin/python" -c 'from nvsubq.ops import native; import sys; sys.exit(native.inactive("cpu"))'
run_tests() { "$VENV/bin/python" -m pytest -q -p no:cacheprovider "${options[@]}" "$@"; }
run_tests tests/ops/test_native.py "$@" >"$build/cases.log" 2>&1 &
cases=$!
run_tests "${files[@]}" "$@" || wrong=yes
wait "$cases" || wrong=yes
cat "$build/cases.log"
[ -z "${wrong:-}" ]
