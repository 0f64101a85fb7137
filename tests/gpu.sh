#!/usr/bin/env bash
# Everything that needs a card: builds for the card that is present, then the C ABI's tests (also
# under compute-sanitizer), the package's CUDA tests, and the benchmark. Needs nvcc, GoogleTest,
# cuDNN, and a Python with torch for CUDA; no network.
#
#   tests/gpu.sh [BUILD_FOLDER]        PYTHON=python3 by default
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
build=${1:-build/gpu}
torch_dir=$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)')
if ! "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "gpu.sh: torch finds no CUDA device; nothing was run" >&2
    exit 1
fi

cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DTORCH_ABSGD_CUDA=ON \
    -DTORCH_ABSGD_GPU_TESTS=ON -DCMAKE_CUDA_ARCHITECTURES=native \
    -DTORCH_ABSGD_TORCH_DIR="$torch_dir" -DCMAKE_INSTALL_PREFIX="$PWD/python/torch_absgd"
cmake --build "$build" --parallel
cmake --install "$build"
export PYTHONPATH="$PWD/python"
export LD_LIBRARY_PATH="$torch_dir/../nvidia/cudnn/lib:${LD_LIBRARY_PATH:-}"

echo "== C ABI on the card"
tests="$build/tests/cuda/absgd_cuda_tests"
"$tests" --gtest_brief=1

echo "== under compute-sanitizer"
if command -v compute-sanitizer > /dev/null; then
    # The larger sizes are left to the run above: the tools slow kernels down a hundredfold.
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 1 "$tests" --gtest_brief=1 \
            --gtest_filter='*WeighFollowsLambda/0:*EveryRuleAtAwkwardSizes/[02]:*GivenRows*/0:*BatchStats/0:*DenseTargets/[02]:*UnalignedLogits*:*Follow*/0'
    done
else
    echo "compute-sanitizer is not on PATH: SKIPPED"
fi

echo "== the package"
"$python" -m pytest -q -m cuda tests/test_cuda.py

echo "== benchmark"
"$python" tests/bench/bench_cuda.py --output "$build/BENCHMARKS.md"
echo "To publish: cp $build/BENCHMARKS.md cuda/BENCHMARKS.md"
