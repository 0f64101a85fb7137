#!/usr/bin/env bash
# The examples, built from installed files alone, with gcc and clang, as C17 and as C++17, with the
# static and the shared library, through pkg-config and through CMake; then with LibTorch. What they
# print is held against numpy (digits.py). At last the copy that the Python package ships.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export CMAKE_GENERATOR=${CMAKE_GENERATOR:-$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")}

quietly() { # shows what a command printed only if it fails
    "$@" >"$work/log" 2>&1 || {
        cat "$work/log"
        exit 1
    }
}

check() { # program [what digits.py is to do]
    "$1" "$work/digits.bin" >"$work/out.txt"
    python "$here/digits.py" "${2:-check}" "$work/digits.bin" "$work/out.txt"
}

with_pkg_config() { # compiler …: the same file in two languages, static and shared
    local prefix=$1 flags libs
    shift
    export PKG_CONFIG_PATH="$prefix/lib/pkgconfig"
    flags="-O2 -Wall -Wextra -Wpedantic -Werror $(pkg-config --cflags absgd)"
    libs=$(pkg-config --libs absgd)
    "$@" $flags "$here/softmax_digits.c" -x none $libs -Wl,-rpath,"$prefix/lib" -o "$work/shared"
    check "$work/shared"
    "$@" $flags "$here/softmax_digits.c" -x none ${libs/-labsgd/-l:libabsgd.a} -o "$work/static"
    check "$work/static"
}

with_cmake() { # prefix, options …
    local prefix=$1
    shift
    rm -rf "$work/project"
    quietly cmake -S "$here" -B "$work/project" -DCMAKE_PREFIX_PATH="$prefix" "$@"
    quietly cmake --build "$work/project"
    check "$work/project/softmax_digits"
    if [[ -x $work/project/libtorch_digits ]]; then check "$work/project/libtorch_digits" check-rule; fi
    if [[ -x $work/project/cuda_links ]]; then "$work/project/cuda_links"; fi
}

python "$here/digits.py" write "$work/digits.bin"
for compiler in gcc clang; do
    cc=$compiler cxx=${compiler/gcc/g}++
    if ! command -v $cxx >/dev/null; then
        echo "skipped, $compiler: it is not installed"
        continue
    fi
    # The package's own build has had all of gcc's levels.
    quietly cmake -S "$here/../.." -B "$work/build-$cc" -DTORCH_ABSGD_WERROR=ON \
        -DTORCH_ABSGD_ONE_LEVEL="$([[ $cc == gcc ]] && echo ON || echo OFF)" \
        -DCMAKE_C_COMPILER=$cc -DCMAKE_CXX_COMPILER=$cxx -DCMAKE_INSTALL_LIBDIR=lib
    quietly cmake --build "$work/build-$cc" --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-2}"
    quietly cmake --install "$work/build-$cc" --prefix "$work/first"
    mv "$work/first" "$work/$cc" # what is installed can be moved
    with_pkg_config "$work/$cc" $cc -std=c17
    with_pkg_config "$work/$cc" $cxx -std=c++17 -x c++
    with_cmake "$work/$cc" -DCMAKE_C_COMPILER=$cc -DCMAKE_CXX_COMPILER=$cxx
    with_cmake "$work/$cc" -DCMAKE_C_COMPILER=$cc -DCMAKE_CXX_COMPILER=$cxx -DBUILD_SHARED_LIBS=ON
    echo "$compiler: C17 and C++17, static and shared, pkg-config and CMake agree with numpy"
done

package() { (cd "$work" && python -c "$1"); }
with_cmake "$(package 'import torch_absgd; print(torch_absgd.cmake_dir())')" \
    -DTORCH_DIR="$(package 'import os, torch; print(os.path.dirname(torch.__file__))')"
echo "the Python package's copy: C, LibTorch$([[ -x $work/project/cuda_links ]] && echo ", CUDA") agree with numpy"
