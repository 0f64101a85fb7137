#!/usr/bin/env bash
# The C ABI from four threads at once under ThreadSanitizer: each fuzz target on pseudo-random inputs.
#   tests/tsan.sh [INPUTS]    in each thread, 500 by default
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-std=c17 -O1 -g -fopenmp-simd -ffp-contract=off -fno-math-errno -fno-trapping-math
    -DABSGD_LEVEL=1 -DABSGD_ONE_LEVEL=1 -I$root/csrc -fsanitize=thread"
export TSAN_OPTIONS=halt_on_error=1
(cd "$work" && printf '%s\n' "$root"/csrc/*.c |
    xargs -P "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" -n 1 gcc $flags -c)
for target in "$root"/tests/fuzz/fuzz_*.c; do
    gcc $flags "$target" "$root/tests/portable/threads.c" "$work"/*.o -lm -o "$work/test"
    "$work/test" "${1:-500}"
    echo "$(basename "$target" .c): 4 × ${1:-500} inputs, no race"
done
gcc $flags -DPLANTED "$target" "$root/tests/portable/threads.c" "$work"/*.o -lm -o "$work/test"
if "$work/test" 50 2>"$work/log"; then
    echo "a planted race was not seen" >&2
    exit 1
fi
grep -q "data race" "$work/log"
echo "a planted race was seen"
