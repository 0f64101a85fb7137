#!/usr/bin/env bash
# All tests, against the package that is installed in the active environment:
#
#   pip install "torch>=2.10" "setuptools>=77" wheel cmake ninja
#   pip install --no-build-isolation ".[recipes,test]" && tests/run_all.sh
#
# Style, the GoogleTests under AddressSanitizer and UBSan, the CUDA kernels on the CPU (with nvcc, the
# installation has compiled and linked them), the torch-free tests with clang and for aarch64 (where
# there is a cross compiler), the C ABI under libFuzzer, the examples against installed files, the
# release, and pytest, to which arguments are handed on. Builds in a temporary folder; nothing in the
# source tree changes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export OMP_NUM_THREADS=1 CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

stage() { # name, command …
    local start=$SECONDS
    echo "=== $1"
    "${@:2}"
    echo "=== $1: $((SECONDS - start)) s"
}

style() {
    ruff check --no-cache . # a cached verdict does not know that a module has moved
    ruff format --no-cache --check .
    mypy
    git ls-files --cached --others --exclude-standard '*.c' '*.h' '*.cpp' '*.cu' '*.cuh' |
        xargs clang-format --dry-run --Werror
}

installed() { # the tests are of what was installed, not of the source tree
    cd "$build"
    python - "$root" <<'EOF'
import pathlib, shutil, sys, torch, torch_absgd
package = pathlib.Path(torch_absgd.__file__).parent
assert not package.is_relative_to(sys.argv[1]), package
has_cuda = (package / "torch_absgd_cuda.so").exists()
assert has_cuda or not shutil.which("nvcc"), "nvcc is here, but torch_absgd_cuda.so was not built"
print("CUDA part:", "built" if has_cuda else "not built, for want of nvcc")
print(f"torch {torch.__version__}, torch_absgd in {torch_absgd.__file__}")
EOF
    cd "$root"
}

ctest_all() { ctest --test-dir "$1" --output-on-failure --no-tests=error; }

cpp_tests() {
    local flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer"
    cmake -S tests/cpp -B "$build/cpp" -DTORCH_ABSGD_WERROR=ON \
        -DTORCH_ABSGD_TORCH_DIR="$(python -c 'import os, torch; print(os.path.dirname(torch.__file__))')" \
        -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" >/dev/null
    cmake --build "$build/cpp" --target absgd_tests
    ctest_all "$build/cpp"
}

cuda_kernels_on_the_cpu() {
    cmake -S tests/cuda_host -B "$build/cuda_host" >/dev/null
    cmake --build "$build/cuda_host"
    ctest --test-dir "$build/cuda_host" --output-on-failure --no-tests=error -j 2
}

gpu_rehearsal() { # of what needs a card, with the kernels that were just built for the CPU
    tests/gpu.sh --rehearse --build "$build/cuda_host" --report "$build/gpu-report"
}

stage "style" style
stage "installed package" installed
stage "GoogleTests with ASan and UBSan" cpp_tests
stage "CUDA kernels on the CPU" cuda_kernels_on_the_cpu
stage "gpu.sh, rehearsed" gpu_rehearsal
stage "clang and aarch64, torch-free" tests/compilers.sh clang aarch64
stage "C ABI fuzzing" env RUNS=5000 tests/fuzz/run.sh 18
stage "examples against installed files" tests/install/run.sh
stage "release" tests/release.sh
echo "=== pytest (after $SECONDS s)"
python -m pytest tests -n 2 --dist loadfile "$@"
