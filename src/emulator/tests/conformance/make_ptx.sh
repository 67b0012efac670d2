#!/bin/sh
# Makes ptx/*.ptx from cuda/*.cu: NVCC=/path/to/nvcc src/emulator/tests/conformance/make_ptx.sh (CUDA 13.0 made the committed ones).
set -eu
cd "$(dirname "$0")/cuda"
for source in *.cu; do
    case "$source" in *_sm90.cu) arch=compute_90a ;; *) arch=compute_80 ;; esac
    "${NVCC:-nvcc}" -ptx -lineinfo -O3 -std=c++17 -arch=$arch -o "../ptx/${source%.cu}.ptx" "$source"
done
# The compiler writes absolute file names; the folder is nobody's business.
sed -i -E 's|^([[:space:]]*\.file[[:space:]]+[0-9]+[[:space:]]+")[^"]*/|\1|' ../ptx/*.ptx
