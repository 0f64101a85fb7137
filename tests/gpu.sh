#!/usr/bin/env bash
# Everything that needs a card, on a machine that need have no network.
#
#   tests/gpu.sh [--quick] [--sanitize] [--bench] [--rehearse] [--report FOLDER] [--build FOLDER] [STAGE …]
#
#   --quick      the C ABI's tests and the package's; about four minutes with the build
#   --sanitize   the C ABI's tests under compute-sanitizer: memcheck, racecheck, synccheck
#   --bench      tests/bench/bench_cuda.py, and tests/bench/sass.py of what was built
#   (none)       all three
#   --rehearse   the same without a card: the kernels on the CPU (tests/cuda_host), the package's
#                tests and the benchmark with CPU tensors; for CI
#   STAGE …      only these, of: card build loaded kernels package memcheck racecheck synccheck bench
#
# Each stage runs whatever became of those before, with a time limit. FOLDER (build/gpu-report) gets
# summary.txt, log.txt and, of the bench, BENCHMARKS.md; the exit status is 0 only if every stage's
# is. Needs nvcc, cmake, a Python ($PYTHON, or python3) with pytest and torch for CUDA, whose wheel
# brings cuDNN, and GoogleTest, which tests/fetch_googletest.sh puts where it is looked for. To
# profile:
#   ncu --set full --nvtx --nvtx-include "step/" -o step python tests/bench/bench_cuda.py --output /dev/null
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
report=build/gpu-report build=build/gpu rehearse= chosen=() stages=()
quick="card build loaded kernels package"
sanitize="card build memcheck racecheck synccheck"
bench="card build loaded bench"
while (($#)); do
    case $1 in
        --quick) chosen+=($quick) ;;
        --sanitize) chosen+=($sanitize) ;;
        --bench) chosen+=($bench) ;;
        --rehearse) rehearse=1 ;;
        --report) report=${2:?} && shift ;;
        --build) build=${2:?} && shift ;;
        card | build | loaded | kernels | package | memcheck | racecheck | synccheck | bench)
            chosen+=("$1") ;;
        *) echo "gpu.sh: unknown argument $1" >&2 && exit 2 ;;
    esac
    shift
done
((${#chosen[@]})) || chosen=($quick $sanitize $bench)
for stage in card build loaded kernels package memcheck racecheck synccheck bench; do
    [[ " ${chosen[*]} " == *" $stage "* ]] && stages+=("$stage")
done

# ---- on a card ----

card_card() {
    nvidia-smi && nvcc --version && "$python" -c '
import torch
print("torch", torch.__version__, "CUDA", torch.version.cuda)
assert torch.cuda.is_available(), "torch finds no CUDA device"
print(torch.cuda.get_device_properties(0))'
}

card_build() {
    configure "$build" native && cmake --build "$build" --parallel && cmake --install "$build"
}

configure() { # folder, architectures
    local torch_dir
    torch_dir=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))') || return
    cmake -S . -B "$1" -DCMAKE_BUILD_TYPE=Release -DTORCH_ABSGD_CUDA=ON -DTORCH_ABSGD_GPU_TESTS=ON \
        -DCMAKE_CUDA_ARCHITECTURES="$2" -DTORCH_ABSGD_TORCH_DIR="$torch_dir" \
        -DCMAKE_INSTALL_PREFIX="$PWD/python/torch_absgd"
}

card_loaded() {
    "$python" -c '
import torch, torch_absgd
from torch_absgd._cuda import cuda_status
print(cuda_status())
assert cuda_status() == "loaded"
x = torch.zeros(3, device="cuda", requires_grad=True)
assert torch_absgd.PerSampleCrossEntropy()(x[None], torch.tensor([0], device="cuda")).isfinite()'
}

card_kernels() { tests_ran "$build/tests/cuda/absgd_cuda_tests"; }
card_package() { package_tests cuda 'there is one card|too little memory' -m cuda; }
card_bench() {
    "$python" tests/bench/bench_cuda.py --output "$report/BENCHMARKS.md" &&
        "$build/tests/cuda/absgd_cuda_tests" '--gtest_filter=*TimesBesideEachOther' |
        sed -n 's/^cross-entropy/- &/p' | tee -a "$report/BENCHMARKS.md" &&
        "$python" tests/bench/sass.py python/torch_absgd/torch_absgd_cuda.so
}

# The smallest sizes of each test: the tools slow kernels down a hundredfold.
few='*WeighFollowsLambda/0:*EveryRuleAtAwkwardSizes/0:*GivenRows*/0:*BatchStats/0:*DenseTargets/0:*UnalignedLogits*:*Follow*/0:*OneLaunch*/0:*CudaSigmoidLoss.*/0'
card_memcheck() { under memcheck; }
card_racecheck() { under racecheck; }
card_synccheck() { under synccheck; }
under() { # tool
    tests_ran compute-sanitizer --tool "$1" --error-exitcode 1 \
        "$build/tests/cuda/absgd_cuda_tests" "--gtest_filter=$few"
}

# ---- without one ----

rehearse_card() { "$python" -c 'import torch; print("torch", torch.__version__)'; }
rehearse_build() { # with nvcc: whether the card's build would find what it needs
    if command -v nvcc; then configure "$build/card" 90-real || return; fi
    cmake -S tests/cuda_host -B "$build" >/dev/null && cmake --build "$build"
}
rehearse_loaded() { "$python" -c 'from torch_absgd._cuda import cuda_status; print(cuda_status())'; }
rehearse_kernels() { tests_ran "$build/cuda_host_asan" "--gtest_filter=$few"; }
rehearse_package() { package_tests cpu 'rehearsed on the CPU|there is one card'; }
rehearse_memcheck() { ctests planted_asan; }
rehearse_racecheck() { ctests planted_tsan; }
rehearse_synccheck() { tests_ran "$build/cuda_host_asan" '--gtest_filter=HarnessDeathTest.*'; }
rehearse_bench() {
    "$python" tests/bench/bench_cuda.py --rehearse --output "$report/BENCHMARKS.md" || return
    local library
    library=$("$python" -c 'from torch_absgd._cuda import LIBRARY; print(LIBRARY)')
    [[ ! -e $library ]] || "$python" tests/bench/sass.py "$library"
}
ctests() { ctest --test-dir "$build" --no-tests=error --output-on-failure -R "$1"; }

# ---- what a stage has to show, in its output so far ----

# A GoogleTest program: that tests passed, and none was skipped.
tests_ran() {
    "$@" --gtest_brief=1 || return
    grep -qE '\[  PASSED  \] [1-9]' "$output" && ! grep -q '\[  SKIPPED \]' "$output" && return
    echo "gpu.sh: no test passed, or one was skipped"
    return 1
}

# test_cuda.py: that tests passed, and none was skipped but for these reasons. None skips itself for
# want of a card, which TORCH_ABSGD_TEST_DEVICE forbids.
package_tests() { # device, reasons, pytest's options …
    TORCH_ABSGD_TEST_DEVICE=$1 "$python" -m pytest -q -p no:cacheprovider "${@:3}" \
        tests/test_cuda.py || return
    grep -qE '[1-9][0-9]* passed' "$output" && ! grep '^SKIPPED' "$output" | grep -vE "$2" && return
    echo "gpu.sh: no test passed, or these were skipped"
    return 1
}

# ---- the run ----

# Seconds. The longest of --quick, --sanitize or --bench stays below ten minutes.
limit() { case $1 in build) echo 180 ;; bench) echo 240 ;; *) echo 130 ;; esac; }

mkdir -p "$report"
report=$(cd "$report" && pwd)
if [[ $rehearse ]]; then
    kind=rehearse
else
    kind=card
    export PYTHONPATH="$PWD/python"
    PATH+=":/usr/local/cuda/bin:$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')"
    export LD_LIBRARY_PATH="$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')/../nvidia/cudnn/lib:${LD_LIBRARY_PATH:-}"
fi
output=$report/stage.txt # of the stage that runs
export python build report output few
export -f $(compgen -A function)
rm -f "$report"/{log.txt,summary.txt,BENCHMARKS.md}
failures=0
for stage in "${stages[@]}"; do
    begin=$SECONDS
    echo "== $stage ($kind)" | tee -a "$report/log.txt"
    timeout --kill-after=10 "$(limit "$stage")" bash -o pipefail -c "${kind}_$stage" >"$output" 2>&1
    status=$?
    ((status)) && failures=$((failures + 1)) && tail -n 25 "$output"
    cat "$output" >>"$report/log.txt" && rm "$output"
    echo "$kind $stage: exit $status, $((SECONDS - begin)) s" | tee -a "$report/summary.txt"
done
echo "$failures of ${#stages[@]} stages failed" | tee -a "$report/summary.txt"
((failures == 0))
