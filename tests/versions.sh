#!/usr/bin/env bash
# Builds the package (its CPU part) and runs its tests with other versions, in environments of their own:
#
#   tests/versions.sh 2.10 3.10    a torch and a Python
#   tests/versions.sh lowest       Python 3.10, and what pyproject.toml asks for at its lower bounds:
#                                  the recipes' tests, too
#   tests/versions.sh              every pair of versions.txt, and lowest
#
# Needs uv, the Python versions and a C++ compiler; a pair takes gigabytes for a while.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
export TORCH_ABSGD_CUDA=0 CMAKE_ARGS=-DTORCH_ABSGD_ONE_LEVEL=ON OMP_NUM_THREADS=1
package=(tests/test_operators.py tests/test_algorithm.py tests/test_losses.py tests/test_weighted_loss.py
    tests/test_sgd_equivalence.py tests/test_compile.py tests/test_checkpoint.py tests/test_old_checkpoints.py)
recipes=(tests/recipes/test_data.py tests/recipes/test_own_data.py tests/recipes/test_report.py
    tests/recipes/test_options.py tests/recipes/test_kill.py)

tested() ( # Python, what to install … -- tests …
    environment=$(mktemp -d)
    trap 'rm -rf "$environment"' EXIT
    uv venv -q --python "$1" "$environment"
    export VIRTUAL_ENV=$environment
    shift
    wanted=()
    while [[ $1 != -- ]]; do wanted+=("$1") && shift; done
    uv pip install -q "${wanted[@]}"
    uv pip install -q "setuptools>=77" wheel cmake ninja numpy pytest pytest-xdist
    uv pip install -q --no-deps --no-build-isolation .
    "$environment/bin/python" -m pytest -n 2 --dist loadfile -p no:cacheprovider "${@:2}"
)

pair() {
    echo "=== torch $1, Python $2"
    tested "$2" "torch==$1.*" -- "${package[@]}"
}

lowest() {
    echo "=== lower bounds"
    tested 3.10 --resolution lowest-direct -r pyproject.toml --extra recipes -- "${package[@]}" "${recipes[@]}"
}

case $# in
0)
    grep -v '^#' tests/versions.txt | while read -r torch python; do pair "$torch" "$python" </dev/null; done
    lowest
    ;;
1) "$1" ;;
*) pair "$@" ;;
esac
