#!/usr/bin/env bash
# The recipe step by step on a small model: what each step does to STS, as a Markdown table.
#
#   benches/ablation.sh MODEL TEXT VALID SENTENCES TRIPLETS OUTPUT STS.tsv…
#
# TEXT and VALID are running text for MNTP, SENTENCES one text per line for SimCSE, TRIPLETS JSONL for the supervised
# step. OUTPUT is a new folder for the adapters. Spearman x 100, mean pooling over the text.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1 text=$2 valid=$3 sentences=$4 triplets=$5 out=$6
shift 6
llm2vec=target/release/llm2vec

row() { # name, flags…
    local name=$1 line
    shift
    line="| $name |"
    for sts in "${files[@]}"; do
        line+=" $("$llm2vec" eval sts -q -m "$model" "$@" --data "$sts" | tail -n 1 | awk '{print $(NF-1)}') |"
    done
    echo "$line"
}

files=("$@")
echo "| |$(printf ' %s |' "${files[@]##*/}")"
echo "|---|$(printf -- '--:|%.0s' "${files[@]}")"
row causal --attention causal
row full
"$llm2vec" train mntp -q -m "$model" --data "$text" --validation "$valid" -o "$out/mntp" \
    --steps 300 --batch 32 --max-length 96 --grouping lines --lr 1e-3 --warmup 20 --decay steps
row "full + MNTP" --adapter "$out/mntp"
"$llm2vec" train simcse -q -m "$model" --adapter "$out/mntp" --data "$sentences" -o "$out/simcse" \
    --steps 150 --batch 64 --max-length 64 --lr 1e-3 --attention-dropout 0.2 --decay steps
row "full + MNTP + SimCSE" --adapter "$out/mntp" --adapter "$out/simcse"
supervised=(train supervised -q -m "$model" --data "$triplets"
    --steps 200 --batch 64 --max-length 64 --lr 1e-3 --warmup 20 --scale 20 --decay steps)
"$llm2vec" "${supervised[@]}" --adapter "$out/mntp" -o "$out/supervised"
row "full + MNTP + supervised" --adapter "$out/mntp" --adapter "$out/supervised"
"$llm2vec" "${supervised[@]}" --adapter "$out/mntp" --adapter "$out/simcse" --continue -o "$out/both"
row "full + MNTP + SimCSE + supervised" --adapter "$out/mntp" --adapter "$out/both"
grep '"eval"' "$out/mntp/log.jsonl" | sed -n '1p;$p'
