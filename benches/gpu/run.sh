#!/usr/bin/env bash
# Tests and times what `benches/gpu/pack.sh` packed, on a machine with a GPU.
#
#   ./run.sh selfcheck|ops|models|pytorch-ops|pytorch-encode|pytorch-train|tests|sanitize|all [RESULTS]
#                                                                                     [results, beside this script]
#
# selfcheck       each family of kernels for Hopper beside the portable ones
# ops             every op of a layer of four models, by portable kernels and by Hopper's
# models          encode and train steps of whole models, likewise
# pytorch-ops     the same ops in turn with PyTorch ($PYTHON, python3)
# pytorch-encode  whole packs in turn with it, eager and torch.compile
# pytorch-train   steps of SimCSE, MNTP and supervised training in turn with it
# tests           every device test and the emulator's own kernels, the GPU's absence being an error
# sanitize        the case table under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
#
# A stage stays below nine minutes. Results are JSON for `bin/llm2vec bench report RESULTS`; `all` writes report.md as well.
# Exit status: 0 all passed, 1 something failed, 3 something is missing here (said in one line; the rest was run).
# DEVICE=cuda:1 picks a GPU; FILTER=rmsnorm bounds what is sanitized and timed.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
stage=${1:-}
results=${2:-$here/results}
device=${DEVICE:-cuda}
export LLM2VEC_ROOT=$here REQUIRE_GPU=1
export LLM2VEC_COMMIT=${LLM2VEC_COMMIT:-$(cat "$here/COMMIT" 2>/dev/null || echo unknown)}
export LLM2VEC_FILTER=${FILTER:-}
llm2vec=$here/bin/llm2vec
python=${PYTHON:-python3}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
failed=0 missing=0
checks=()

usage() { sed -n '2,/^set/s/^# \{0,1\}//p' "$0" | sed '/^set/d' >&2; exit 2; }
# What a cut has left of a character goes, too.
text() { if command -v iconv >/dev/null; then iconv -c -f UTF-8 -t UTF-8; else LC_ALL=C tr -d '\200-\377'; fi; }
quoted() { printf '%s' "$1" | tr '\n\t\r' '   ' | sed 's/\\/\\\\/g; s/"/\\"/g; s/[[:cntrl:]]//g'; }

# check NAME STATUS SECONDS DETAIL
check() {
    echo "$2: $1 ($3 s)${4:+: $4}"
    checks+=("{\"name\": \"$(quoted "$1")\", \"status\": \"$2\", \"seconds\": $3, \"detail\": \"$(quoted "$4")\"}")
    case $2 in
        failed) failed=1 ;;
        skipped) missing=1 ;;
    esac
}

# attempt NAME LIMIT COMMAND...: runs it, notes how it ended and the last line that it wrote
attempt() {
    local name=$1 limit=$2 log start status
    shift 2
    log=$results/$(printf '%s' "$name" | tr -c 'a-zA-Z0-9\n' '-').log
    start=$SECONDS
    timeout -k 5 "$limit" "$@" >"$log" 2>&1
    status=$?
    local last
    last=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | cut -c 1-200 | text)
    case $status in
        0) check "$name" passed $((SECONDS - start)) "$last" ;;
        124 | 137) check "$name" failed $((SECONDS - start)) "took longer than $limit s; see $log" ;;
        *) check "$name" failed $((SECONDS - start)) "exit status $status: $last; see $log" ;;
    esac
    return $status
}

# publish NAME: the checks so far as a record
publish() {
    local IFS=,
    printf '{"kind": "checks", "device": "%s", "driver": "%s", "machine": "%s", "commit": "%s", "command": "%s", "date": "%s", "checks": [%s]}\n' \
        "$(quoted "$(gpu)")" "$(quoted "$(driver)")" "$(quoted "$(uname -srm)")" "$(quoted "$LLM2VEC_COMMIT")" "run.sh $1" \
        "$(date -u '+%Y-%m-%d %H:%M:%S UTC')" "${checks[*]:-}" >"$results/$1.json"
    checks=()
}

driver() { "$llm2vec" doctor --json | sed -n 's/.*"name":"driver","status":"PASS","what":"\(.*\)","hint.*/\1/p'; }
gpu() { "$llm2vec" doctor --json | sed -n 's/.*"name":"gpu","status":"[A-Z]*","what":"\(.*\)","hint.*/\1/p'; }

# has STAGE [TOOL]...: whether all is here; says of each thing that is not
has() {
    local stage=$1 lacks="" tool why
    shift
    "$llm2vec" doctor --json | grep -q '"name":"gpu","status":"PASS"' || lacks="no GPU: $(gpu)"
    for tool in "$@"; do
        case $tool in
            sanitizer)
                if [ -n "$sanitizer" ]; then continue; fi
                why="no compute-sanitizer in PATH or /usr/local/cuda*/bin (it comes with the CUDA toolkit)"
                ;;
            torch)
                if why=$("$python" -c 'import torch' 2>&1); then continue; fi
                why="no torch for $python: $(printf '%s' "$why" | tail -n 1)"
                ;;
        esac
        lacks="${lacks:+$lacks; }$why"
    done
    if [ -n "$lacks" ]; then
        check "$stage" skipped 0 "$lacks"
        return 1
    fi
}

tests() {
    if has tests; then
        local program=$here/tests/device module number visible=()
        # Tests take the first GPU that they see.
        case $device in
            cuda:*)
                number=${device#cuda:}
                if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
                    number=$(printf '%s' "$CUDA_VISIBLE_DEVICES" | cut -d , -f $((number + 1)))
                fi
                visible=(env "CUDA_VISIBLE_DEVICES=$number")
                ;;
        esac
        if [ ! -x "$program" ]; then check tests failed 0 "the pack holds no test program"; fi
        for module in cases model emulator; do
            # `llm2vec emulate` reads files that are not packed.
            attempt "tests $module" 176 ${visible[@]+"${visible[@]}"} "$program" "$module::" --nocapture --skip emulator::command::
        done
    fi
    publish tests
}

sanitize() {
    if has sanitize sanitizer; then
        for which in memcheck racecheck initcheck synccheck; do
            attempt "sanitize $which" 130 "$sanitizer" --tool "$which" --error-exitcode 9 \
                "$llm2vec" bench ops --device "$device" --cases table --rounds 0 --quiet
        done
    fi
    publish sanitize
}

# Kernels for Hopper run on compute capability 9.0 alone.
sets() { if gpu | grep -q 'sm_90,'; then echo portable hopper; else echo portable; fi; }

selfcheck() {
    if has selfcheck; then
        if [ "$(sets)" = portable ]; then check selfcheck passed 0 "no GPU of compute capability 9.0: portable kernels run"; else
            for family in attention lora_linear masked_xent contrastive; do
                attempt "selfcheck $family" 60 "$llm2vec" self-check "$family" "$device"
            done
        fi
    fi
    publish selfcheck
}

ops() {
    if has ops; then
        local set
        for set in $(sets); do
            # --seconds ends after the round under way; a limit would lose what was timed.
            attempt "bench ops $set" 260 "$llm2vec" bench ops --device "$device" --kernels "$set" --cases large --seconds 160 \
                --output "$results/ops-$set.json" --output "$results/ops-$set.csv" --plot "$results/ops-$set.svg"
        done
    fi
    publish ops
}

# whole NAME LIMIT ARGS...: a bench of a whole model, its record and its picture under that name
whole() {
    local name=$1 limit=$2
    shift 2
    attempt "bench $name" "$limit" "$llm2vec" bench "$@" --device "$device" --rounds 2 --samples 3 \
        --output "$results/$name.json" --plot "$results/$name.svg"
}

models() {
    if has models; then
        local set shape
        for set in $(sets); do
            for shape in S-LLaMA-1.3B Mistral-7B; do
                whole "encode-$shape-$set" 60 encode --shape $shape --kernels "$set"
                whole "train-$shape-$set" 60 train --shape $shape --kernels "$set"
            done
        done
    fi
    publish models
}

pytorch-ops() {
    if has pytorch-ops torch; then
        attempt "bench ops against pytorch" 480 "$llm2vec" bench ops --device "$device" --cases large --rounds 3 \
            --seconds 240 --patience 120 --against pytorch --python "$python" --output "$results/ops-pytorch.json" \
            --output "$results/ops-pytorch.csv" --plot "$results/ops-pytorch.svg"
    fi
    publish pytorch-ops
}

pytorch-encode() {
    if has pytorch-encode torch; then
        for shape in S-LLaMA-1.3B Mistral-7B; do
            whole "encode-$shape-pytorch" 260 encode --shape $shape --seconds 60 --patience 90 --against pytorch --python "$python" --compile
        done
    fi
    publish pytorch-encode
}

pytorch-train() {
    if has pytorch-train torch; then
        for loss in simcse mntp supervised; do
            whole "train-S-LLaMA-1.3B-$loss-pytorch" 110 train --shape S-LLaMA-1.3B --stage $loss --seconds 40 --patience 60 --against pytorch --python "$python"
        done
        whole train-Mistral-7B-pytorch 190 train --shape Mistral-7B --recompute --seconds 60 --patience 90 --against pytorch --python "$python"
    fi
    publish pytorch-train
}

case $stage in
    selfcheck | ops | models | pytorch-ops | pytorch-encode | pytorch-train | tests | sanitize | all) ;;
    *) usage ;;
esac
if ! mkdir -p "$results" || [ ! -x "$llm2vec" ]; then
    echo "error: $llm2vec or $results is not there; unpack all of llm2vec-gpu.tar.gz" >&2
    exit 1
fi
if [ "$stage" = all ]; then
    selfcheck; ops; models; pytorch-ops; pytorch-encode; pytorch-train; tests; sanitize
    if "$llm2vec" bench report "$results" >"$results/report.md"; then
        echo "report: $results/report.md"
    else
        failed=1
    fi
else
    $stage
fi
if [ $failed = 1 ]; then exit 1; fi
if [ $missing = 1 ]; then exit 3; fi
