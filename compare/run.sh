#!/usr/bin/env bash
# Compares transformers in f32, bf16 and LLM.int8 with microgranite on one checkpoint: compare/run.sh BINARY [MODEL]
# MODEL is a Hugging Face folder in bf16, or the name of a shape in checkpoint.py, which is filled with random weights; by
# default it is the demo model. Results of all models that were measured before are kept in target/compare and shown together.
#
# ROUNDS, PROMPT, ANSWER: rounds of measurement, tokens of the prompt and of the answer.
# WRAP: a command to run each measurement through, such as "taskset -c 0-3".
set -euo pipefail
if [ $# -lt 1 ] || [ ! -x "$1" ]; then
    sed -n '2,7s/^# //p' "$0" >&2
    [ $# -lt 1 ] || echo "$1 is not a program: build it with cargo build --release" >&2
    exit 64
fi
binary=$(realpath "$1")
model=${2:-smollm2-135m}
read -ra wrap <<<"${WRAP:-}"
[ ! -d "$model" ] || model=$(realpath "$model")
cd "$(dirname "$0")"

work=../target/compare
mkdir -p "$work"
python=$work/venv/bin/python
[ -x "$python" ] || python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check -r requirements.txt
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TQDM_DISABLE=1

folders=$work/$(basename "$model")
text=../src/text/alice.txt
tokenizer=../tests/fixtures/granite-3-tiny/tokenizer.json
mkdir -p "$folders"

rounding=compensated
if [ -d "$model" ]; then
    ln -sfn "$model" "$folders/bf16"
elif [ "$model" = smollm2-135m ]; then
    gguf=$("$binary" pull demo)
    [ -e "$folders/bf16" ] || "$python" checkpoint.py from-gguf "$gguf" "$folders/bf16"
else
    # Random weights have no structure to compensate for, and no text to be tested on.
    rounding=nearest
    [ -e "$folders/bf16" ] || "$python" checkpoint.py random "$model" "$folders/bf16" "$tokenizer"
fi
[ -e "$folders/llm-int8" ] || "$python" checkpoint.py llm-int8 "$folders/bf16" "$folders/llm-int8"
[ -e "$folders/microgranite" ] ||
    "$binary" quantize "$folders/bf16" -o "$folders/microgranite" --rounding "$rounding"

if [ "$rounding" = compensated ] && [ ! -e "$folders/accuracy.json" ]; then
    "$python" accuracy.py "$binary" "$folders" "$text"
fi
rm -f "$folders/runs.jsonl"
for _ in $(seq "${ROUNDS:-5}"); do
    for engine in f32 bf16 llm-int8 microgranite; do
        "${wrap[@]}" "$python" measure.py "$binary" "$folders" "$text" "$engine" "${PROMPT:-256}" "${ANSWER:-32}"
    done
done

mapfile -t measured < <(dirname "$work"/*/runs.jsonl)
"$python" report.py "${measured[@]}"
"$python" plot.py
cat results.md
