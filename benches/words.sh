#!/usr/bin/env bash
# Word-level tasks by small models, causal against full attention, as a Markdown table.
#
#   benches/words.sh CACHE DATA MODEL…
#
# DATA is a folder of word sets (ud-ewt.train.jsonl.gz …, wnut17.train.jsonl.gz …). CACHE keeps features. What follows a
# MODEL after a comma is an adapter on it. More flags for the probe in $PROBE.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=$1 data=$2
shift 2
llm2vec=${LLM2VEC:-target/release/llm2vec}

echo "| model | attention | upos accuracy | chunk accuracy | chunk F1 | ner accuracy | ner F1 |"
echo "|---|---|--:|--:|--:|--:|--:|"
for stack in "$@"; do
    IFS=, read -r model adapter <<<"$stack"
    for attention in causal full; do
        line="| $(basename "$model")${adapter:+ + $(basename "$adapter")} | $attention |"
        for task in ud-ewt:upos ud-ewt:chunk wnut17:ner; do
            figures=$("$llm2vec" eval words -q -m "$model" ${adapter:+--adapter "$adapter"} --attention "$attention" \
                --data "$data/${task%:*}" --label "${task#*:}" --cache "$cache" ${PROBE:-} 2>/dev/null | sed -n 2p)
            line+=" $(awk '{print $2}' <<<"$figures") |"
            [ "$task" = ud-ewt:upos ] || line+=" $(awk '{print $5}' <<<"$figures") |"
        done
        echo "$line"
    done
done
