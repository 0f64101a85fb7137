#!/usr/bin/env bash
# What is released, as a stranger would have it: the sdist, a wheel built from it, its tag, its
# installation where there is no compiler, and an editable installation whose C is changed, and made
# again once the tools that built it are gone.
# CPU part only; builds in a temporary folder, downloads nothing.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TORCH_ABSGD_CUDA=0 CMAKE_ARGS="-DTORCH_ABSGD_WERROR=ON -DTORCH_ABSGD_ONE_LEVEL=ON"
export PIP_DISABLE_PIP_VERSION_CHECK=1
cd "$root"

fail() {
    echo "$1" >&2
    exit 1
}

fresh_environment() { # a venv that sees what the active one has, pip too, but for torch_absgd
    python -m venv --without-pip "$1"
    mkdir "$1/outer"
    python - "$1/outer" <<'PYTHON'
import pathlib, sys
for path in (pathlib.Path(p) for p in sys.path if p.endswith("-packages")):
    for entry in path.iterdir():
        link = pathlib.Path(sys.argv[1], entry.name)
        if "torch_absgd" not in entry.name and not link.exists():
            link.symlink_to(entry)
PYTHON
    echo "$1/outer" >"$(echo "$1"/lib/python3*/site-packages)/outer.pth"
}

echo "--- sdist and wheel"
if git rev-parse >/dev/null 2>&1; then check-manifest --no-build-isolation; fi
python -m build --no-isolation --outdir "$work/dist" . >"$work/log" 2>&1 || fail "$(cat "$work/log")"
twine check --strict "$work"/dist/*

echo "--- the lowest manylinux tag"
auditwheel show "$work"/dist/*.whl
auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir "$work/wheelhouse" \
    "$work"/dist/*.whl
wheel=$(echo "$work"/wheelhouse/*.whl)
[[ $wheel == *-py3-none-manylinux* ]] || fail "the tag is not py3-none-manylinux: $wheel"

echo "--- what is in it"
python -m zipfile -e "$wheel" "$work/unpacked"
for file in torch_absgd_cpu.so _version.py py.typed include/absgd.h include/absgd_libtorch.h \
    lib/libabsgd.a lib/cmake/absgd/absgdConfig.cmake; do
    [[ -e $work/unpacked/torch_absgd/$file ]] || fail "the wheel lacks $file"
done
[[ ! -e $work/unpacked/torch_absgd/torch_absgd_cuda.so ]] || fail "a CPU wheel with a CUDA part"
if grep -rlaF -e "$root" -e "$work" "$work/unpacked"; then fail "these hold paths of the build"; fi

echo "--- installed where there is no compiler"
fresh_environment "$work/user"
PATH=/nowhere "$work/user/bin/python" -m pip install -q --no-index --no-deps --ignore-installed "$wheel"
cd "$work"
PATH=/nowhere "$work/user/bin/python" - <<'PYTHON'
import pathlib, sys, torch, torch_absgd as ta
assert pathlib.Path(ta.__file__).is_relative_to(sys.prefix), ta.__file__
assert (ta.include_dir() / "absgd.h").exists() and ta.cmake_dir().is_dir()
ta.show_config()
w = torch.ones(3, requires_grad=True)
opt = ta.ABSGD([w], lr=0.1, lam=1.0)
opt.weigh(w**2).backward()
opt.step()
assert torch.allclose(w, torch.full((3,), 1 - 0.1 * 2 / 3)), w
PYTHON
for command in torch-absgd-train torch-absgd-paper; do
    "$work/user/bin/$command" --help >"$work/help"
    grep -q -- --dry-run "$work/help" || fail "$command --help: $(cat "$work/help")"
done

echo "--- an editable installation follows its C sources"
tar -xzf "$work"/dist/*.tar.gz -C "$work"
cd "$work"/torch_absgd-*/
fresh_environment "$work/developer"
"$work/developer/bin/python" -m pip install -q --no-index --no-deps --ignore-installed --no-build-isolation -e .
sleep 1 # CMake installs a file only if it is newer by a second
sed -i 's/return "success"/return "changed"/' csrc/status.c
cmake --build build/editable --target install >"$work/log" 2>&1 || fail "$(cat "$work/log")"
cd "$work"
"$work/developer/bin/python" - <<'PYTHON'
import ctypes, pathlib, torch_absgd
library = ctypes.CDLL(str(pathlib.Path(torch_absgd.__file__).with_name("torch_absgd_cpu.so")))
library.absgd_status_string.restype = ctypes.c_char_p
assert library.absgd_status_string(0) == b"changed", torch_absgd.__file__
PYTHON

echo "--- and is made again after its environment is gone"
cd "$work"/torch_absgd-*/
sed -i 's|^CMAKE_MAKE_PROGRAM:.*|CMAKE_MAKE_PROGRAM:FILEPATH=/gone/bin/ninja|' build/editable/CMakeCache.txt
"$work/developer/bin/python" -m pip install -q --no-index --no-deps --ignore-installed --no-build-isolation -e . \
    >"$work/log" 2>&1 || fail "$(cat "$work/log")"
echo "--- released in $SECONDS s"
