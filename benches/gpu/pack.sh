#!/usr/bin/env bash
# Packs all that a machine with a GPU needs to test and time this commit: no Rust, no CUDA toolkit, no network.
#
#   benches/gpu/pack.sh [FOLDER]      FOLDER/llm2vec-gpu/ and FOLDER/llm2vec-gpu.tar.gz      [target/gpu]
#
# There: `llm2vec-gpu/run.sh all`. What is packed runs on Linux of this machine's processor type and of its glibc or newer.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$(mkdir -p "${1:-target/gpu}" && cd "${1:-target/gpu}" && pwd)
pack=$out/llm2vec-gpu
most=45 # MB

# Cargo names each program that it built in a line of JSON.
built() { sed -n 's/.*"executable":"\([^"]*\)".*/\1/p'; }

rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/tests"
# The kernels are what it is about.
export REQUIRE_NVCC=1
cargo build --release --bin llm2vec
strip -o "$pack/bin/llm2vec" target/release/llm2vec
# The one test program that looks for a GPU, images and all; run.sh picks its modules by name.
cargo test --release -p llm2vec --no-run --message-format=json --test device | built | while read -r program; do
    name=$(basename "$program")
    # deps/NAME-HASH; the program itself is among what tests need.
    if [ "$name" != llm2vec ]; then strip -o "$pack/tests/${name%-*}" "$program"; fi
done
ls "$pack"/tests/* >/dev/null

# Data where the tests look for it below LLM2VEC_ROOT.
cp -r tests/golden tests/models tests/texts "$pack/tests/"
cp benches/gpu/run.sh "$pack/"
git describe --always --dirty > "$pack/COMMIT" 2>/dev/null || echo unknown > "$pack/COMMIT"

tar -C "$out" -czf "$pack.tar.gz" llm2vec-gpu
size=$(( $(stat -c %s "$pack.tar.gz") / 1000000 ))
echo "$pack.tar.gz: $size MB, commit $(cat "$pack/COMMIT")"
if [ "$size" -ge "$most" ]; then
    echo "error: more than $most MB" >&2
    exit 1
fi
