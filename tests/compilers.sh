#!/usr/bin/env bash
# The torch-free tests with other compilers and for other processors, those under qemu:
#
#   tests/compilers.sh                 all of them; says which are missing
#   tests/compilers.sh clang aarch64   these
#
# tests/portable/test_reference.c holds the C ABI against plain formulas; the fuzz targets, on the
# same pseudo-random inputs everywhere, against itself. On Debian: gcc-12-multilib (not gcc-multilib,
# which excludes the others), gcc-{aarch64,s390x}-linux-gnu, libc6-dev-{arm64,s390x}-cross and
# qemu-user-static.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags="-std=c17 -O2 -Wall -Wextra -Werror -fopenmp-simd -ffp-contract=off -fno-math-errno
    -fno-trapping-math -DABSGD_LEVEL=1 -DABSGD_ONE_LEVEL=1 -I$root/csrc"

cross() { echo "$1-linux-gnu-gcc -static"; }
declare -A compiler=(
    [gcc]="gcc" [gcc11]="gcc-11" [clang]="clang -Wno-pass-failed" [clang15]="clang-15 -Wno-pass-failed"
    [i386]="gcc -m32 -msse2 -mfpmath=sse -static" # 80-bit registers would round at other places
    [aarch64]=$(cross aarch64) [s390x]="$(cross s390x) -fexcess-precision=fast" [powerpc64]=$(cross powerpc64)
)
declare -A runner=([aarch64]=qemu-aarch64-static [s390x]=qemu-s390x-static [powerpc64]=qemu-ppc64-static)

run() { # name
    local cc=${compiler[$1]} emulator=${runner[$1]:-} source target start=$SECONDS
    echo 'int main(void) { return 0; }' >"$work/probe.c"
    if ! $cc "$work/probe.c" -o "$work/probe" 2>/dev/null || ! $emulator "$work/probe" 2>/dev/null; then
        echo "$1: missing: $cc${emulator:+, $emulator}"
        return
    fi
    (cd "$work" && printf '%s\n' "$root"/csrc/*.c |
        xargs -P "${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}" -n 1 $cc $flags -c)
    $cc $flags "$root/tests/portable/test_reference.c" "$work"/*.o -lm -o "$work/test"
    $emulator "$work/test"
    for target in "$root"/tests/fuzz/fuzz_*.c; do
        $cc $flags "$target" "$root/tests/portable/replay.c" "$work"/*.o -lm -o "$work/test"
        $emulator "$work/test" "${INPUTS:-2000}"
    done
    echo "$1: $($cc -dumpmachine), $($cc -dumpfullversion 2>/dev/null || $cc -dumpversion): passed in $((SECONDS - start)) s"
}

if (($# == 0)); then set -- gcc gcc11 clang clang15 i386 aarch64 s390x powerpc64; fi
for name; do run "$name"; done
