#!/usr/bin/env bash
# Runs a command with the package's operators built for a sanitizer, address (and undefined) or thread:
#   tests/sanitized.sh address python tests/campaign/step_twins.py 100000
#   tests/sanitized.sh thread python tests/campaign/threads.py 1000
# ABSGD_SANITIZED_DIR keeps the build from one command to the next, a folder for each sanitizer.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:?address or thread} in
address)
    flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
    library=libasan.so one_level=OFF
    ;;
thread)
    flags="-fsanitize=thread -g"
    library=libtsan.so one_level=ON # the others share nothing more among threads
    ;;
*) echo "a sanitizer must be address or thread, got $1" >&2 && exit 2 ;;
esac
if [[ -z ${ABSGD_SANITIZED_DIR:-} ]]; then
    ABSGD_SANITIZED_DIR=$(mktemp -d)
    trap 'rm -rf "$ABSGD_SANITIZED_DIR"' EXIT
fi
build=$ABSGD_SANITIZED_DIR/$1 package=$ABSGD_SANITIZED_DIR/$1/python/torch_absgd
mkdir -p "$package"
cp "$root"/python/torch_absgd/*.py "$package"
cmake -S "$root" -B "$build" -DCMAKE_INSTALL_PREFIX="$package" -DTORCH_ABSGD_ONE_LEVEL=$one_level \
    -DTORCH_ABSGD_TORCH_DIR="$(python -c 'import os, torch; print(os.path.dirname(torch.__file__))')" \
    -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" >/dev/null
cmake --build "$build" >/dev/null
cmake --install "$build" --component python >/dev/null
# Python and torch are not built for it: its runtime comes first, then what throws; leaks are not looked
# for, nor races in what they call. A race ends the command with an error.
LD_PRELOAD="$(gcc -print-file-name=$library) $(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
    TSAN_OPTIONS=ignore_noninstrumented_modules=1,halt_on_error=1 PYTHONPATH=$package/.. "${@:2}"
