#!/usr/bin/env bash
# GoogleTest from Debian's package, for a machine with a card and without a network: 1.5 MB in
# build/googletest, which git ignores and tests/cuda/CMakeLists.txt looks into. Carry it along.
set -euo pipefail
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/googletest
download=$(mktemp -d)
trap 'rm -rf "$download"' EXIT
cd "$download"
apt-get download -qq -o APT::Sandbox::User=root libgtest-dev
mkdir -p "$folder"
dpkg -x libgtest-dev_*.deb "$folder"
test -f "$folder/usr/include/gtest/gtest.h"
echo "$folder: $(du -sh "$folder" | cut -f1)"
