#!/usr/bin/env bash
# The C ABI under libFuzzer with AddressSanitizer and UBSan, one target after the other:
#
#   tests/fuzz/run.sh 30                    for 30 seconds in all
#   tests/fuzz/run.sh 3600 build/corpus     goes on from the inputs in a folder, and adds to them
#   RUNS=2000000 tests/fuzz/run.sh 86400    that many calls a target at most
#
# Prints how many inputs each target ran, and stops at the first that fails; libFuzzer then names
# the file that it wrote, in the current folder.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
seconds=${1:?how many seconds in all} corpus=${2:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo 'int LLVMFuzzerTestOneInput(const char *d, long n) { return d && n < 0; }' >"$work/probe.c"
if ! clang -fsanitize=fuzzer,address,undefined "$work/probe.c" -o "$work/probe" 2>/dev/null; then
    echo "skipped: no clang with libFuzzer"
    exit 0
fi

flags="-std=c17 -O1 -g -Wall -Wextra -Werror -fno-omit-frame-pointer -fopenmp-simd -ffp-contract=off
    -fno-math-errno -Wno-pass-failed -DABSGD_ONE_LEVEL=1 -DABSGD_LEVEL=1 -I$here/../../csrc
    -fsanitize=address,undefined -fno-sanitize-recover=all"
parallel="xargs -P ${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)} -I{}"
mkdir "$work/kernels"
cd "$work/kernels"
printf '%s\n' "$here"/../../csrc/*.c | $parallel clang $flags -fsanitize=fuzzer-no-link -c {}
ar rcs "$work/absgd.a" ./*.o
cd - >/dev/null
targets=(weights accumulation lam_search sgd softmax_loss sigmoid_loss)
printf '%s\n' "${targets[@]}" |
    $parallel clang $flags -fsanitize=fuzzer "$here/fuzz_{}.c" "$work/absgd.a" -lm -o "$work/fuzz_{}"
for name in "${targets[@]}"; do
    inputs=${corpus:-$work/corpus}/$name
    mkdir -p "$inputs"
    if ! "$work/fuzz_$name" -max_total_time=$((seconds / ${#targets[@]})) ${RUNS:+-runs=$RUNS} -seed=1 \
        -max_len=512 -len_control=0 -print_final_stats=1 "$inputs" >"$work/log" 2>&1; then
        cat "$work/log"
        exit 1
    fi
    echo "$name: $(awk '/number_of_executed_units/ {print $2}' "$work/log") inputs," \
        "$(awk '/cov:/ {for (i = 1; i < NF; i++) if ($i == "cov:") c = $(i + 1)} END {print c}' \
            "$work/log") edges"
done
