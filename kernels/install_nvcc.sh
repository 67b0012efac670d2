#!/bin/sh
# Puts NVIDIA's compiler under target/nvcc, from its Python wheels (105 MB), where the build would find none that will do.
# Needs gcc, and python3 with pip; without them it says so, and the build goes on without kernels. REQUIRE_NVCC=1 makes that
# an error; NVCC=none asks for no kernels.
set -eu
cd "$(dirname "$0")/.."
folder=${CARGO_TARGET_DIR:-target}/nvcc

give_up() {
    echo "install_nvcc: $1: no CUDA kernels will be built" >&2
    case ${REQUIRE_NVCC:-0} in 0 | "") exit 0 ;; *) exit 1 ;; esac
}

# As build/nvcc.rs has it: 12.8 is the oldest that knows sm_120.
new_enough() {
    version=$("$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\)\.\([0-9]*\).*/\1 \2/p' | tail -n 1)
    [ -n "$version" ] && [ "${version% *}" -ge 12 ] && { [ "${version% *}" -gt 12 ] || [ "${version#* }" -ge 8 ]; }
}

if [ "${NVCC:-}" = none ]; then give_up "NVCC=none"; fi
[ -n "${NVCC_CCBIN:-}" ] || command -v gcc >/dev/null || command -v g++ >/dev/null || give_up "gcc was not found, which nvcc calls"
IFS=:
for found in ${PATH:-}; do path_nvcc="${path_nvcc:-}:$found/nvcc"; done
for found in "${NVCC:-}" "${CUDA_HOME:-}/bin/nvcc" ${path_nvcc:-} /usr/local/cuda/bin/nvcc \
    "$folder"/nvidia/*/bin/nvcc "${VIRTUAL_ENV:-/nowhere}"/lib/python3*/site-packages/nvidia/*/bin/nvcc \
    "${CONDA_PREFIX:-/nowhere}"/lib/python3*/site-packages/nvidia/*/bin/nvcc; do
    if [ ! -f "$found" ] || [ ! -x "$found" ]; then continue; fi
    if new_enough "$found"; then
        echo "install_nvcc: there is $found" >&2
        exit 0
    fi
    echo "install_nvcc: passed over $found, older than 12.8" >&2
done
unset IFS
if [ -n "${NVCC:-}" ]; then give_up "NVCC=$NVCC will not do, and the build takes no other"; fi
python3 -m pip --version >/dev/null 2>&1 || give_up "python3 with pip was not found"

# The whole set is pinned: a newer part, or a part alone, does not fit the rest.
rm -rf "$folder.part"
PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --target "$folder.part" \
    "cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]==13.0.2" >&2 || give_up "pip could not install cuda-toolkit 13.0.2"
rm -rf "$folder" && mv "$folder.part" "$folder"
touch build.rs # cargo runs it again
echo "install_nvcc: installed under $folder" >&2
