#!/usr/bin/env bash
# Runs a command with the package's operators under AddressSanitizer and UBSan, built for it:
#   tests/asan.sh python tests/campaign/step_twins.py 100000
# ABSGD_ASAN_DIR keeps the build from one command to the next.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z ${ABSGD_ASAN_DIR:-} ]]; then
    ABSGD_ASAN_DIR=$(mktemp -d)
    trap 'rm -rf "$ABSGD_ASAN_DIR"' EXIT
fi
package=$ABSGD_ASAN_DIR/python/torch_absgd
mkdir -p "$package"
cp "$root"/python/torch_absgd/*.py "$package"
flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
cmake -S "$root" -B "$ABSGD_ASAN_DIR/build" -DCMAKE_INSTALL_PREFIX="$package" \
    -DTORCH_ABSGD_TORCH_DIR="$(python -c 'import os, torch; print(os.path.dirname(torch.__file__))')" \
    -DCMAKE_C_FLAGS="$flags" -DCMAKE_CXX_FLAGS="$flags" >/dev/null
cmake --build "$ABSGD_ASAN_DIR/build" >/dev/null
cmake --install "$ABSGD_ASAN_DIR/build" --component python >/dev/null
# Python itself is not built for it: its runtime comes first, then what throws, and leaks are not
# looked for.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
    PYTHONPATH=$package/.. "$@"
