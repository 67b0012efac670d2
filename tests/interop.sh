#!/usr/bin/env bash
# The live comparison of tests/interop.py with all versions that it names, in Python environments of its own below
# target/interop (about 6 GB, made once). Arguments go on to interop.py; PYTHON chooses another interpreter than python3.
set -euo pipefail
cd "$(dirname "$0")/.."
home=target/interop
if [ ! -e $home/ready ]; then
    "${PYTHON:-python3}" -m venv $home/newest
    $home/newest/bin/pip install -q torch transformers peft sentence-transformers
    $home/newest/bin/pip install -q --no-deps -t $home/older transformers==5.2.0 tokenizers==0.22.2 'huggingface_hub<2'
    $home/newest/bin/pip install -q -t $home/older httpx
    $home/newest/bin/pip install -q --no-deps -t $home/oldest transformers==4.44.2 tokenizers==0.19.1 \
        huggingface_hub==0.25.2 peft==0.12.0 accelerate==0.34.2 'numpy<2' llm2vec==0.2.3
    touch $home/ready
fi
cargo build --release --quiet
$home/newest/bin/pip list 2>/dev/null | grep -E '^(torch|transformers|peft|sentence-transformers|numpy|safetensors) '
$home/newest/bin/python tests/interop.py --binary target/release/llm2vec --older $home/older --oldest $home/oldest "$@"
