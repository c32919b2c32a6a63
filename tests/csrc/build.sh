#!/usr/bin/env bash
# tests/csrc/build.sh LIBRARY PROGRAM [FLAG...]: compiles the header as C99 and C++17, and the program that calls the
# library through it. CC and CXX name the compilers; flags go to both.
set -euo pipefail
library=$(realpath "$1") program=$(realpath -m "$2")
shift 2
cd "$(dirname "${BASH_SOURCE[0]}")"
objects=$(mktemp -d)
trap 'rm -r "$objects"' EXIT
flags=(-O1 -g -Wall -Wextra -Wpedantic -Werror -I../../csrc/include "$@")
"${CC:-cc}" -std=c99 "${flags[@]}" -c layout.c -o "$objects/layout.o"
for file in main scan conv ssd; do
    "${CXX:-c++}" -std=c++17 "${flags[@]}" -c "$file.cpp" -o "$objects/$file.o" &
    jobs+=($!)
done
for job in "${jobs[@]}"; do wait "$job"; done
"${CXX:-c++}" "$@" "$objects"/*.o "$library" -o "$program"
