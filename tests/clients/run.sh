#!/usr/bin/env bash
# Runs widely used clients against the demo model: tests/clients/run.sh BINARY
# Needs the demo model (`microgranite pull demo`), Node.js with npm, Chromium, and package indexes for the clients; the tests
# themselves are offline.
set -euo pipefail
if [ $# -lt 1 ] || [ ! -x "$1" ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 64
fi
binary=$(realpath "$1")
cd "$(dirname "$0")"

work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true; rm -rf "$work"' EXIT

venv=${CLIENTS_VENV:-../../target/clients-venv}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q --disable-pip-version-check -r requirements.txt

# The packages of npm are kept like those of Python, and only their own scripts are run: the test.
node=${CLIENTS_NODE:-../../target/clients-node}
for folder in ai-sdk page; do
    mkdir -p "$node/$folder"
    cp "$folder"/* "$node/$folder"
    npm ci --prefix "$node/$folder" --silent --no-fund --no-audit --ignore-scripts
done

serve() { # serve NAME FLAG…: starts a server on a free port and sets `url`
    local name=$1
    shift
    # The server is started in the background: on a busy machine the file is read before it is there otherwise.
    : >"$work/$name.out"
    HF_HUB_OFFLINE=1 "$binary" serve --listen 127.0.0.1:0 "$@" >"$work/$name.out" 2>"$work/$name.log" &
    pids+=($!)
    for _ in $(seq 600); do
        url=$(sed -n 's/.* is ready on \(http:[^ ]*\)$/\1/p' "$work/$name.out")
        [ -z "$url" ] || return 0
        kill -0 "${pids[-1]}" || break
        sleep 0.1
    done
    cat "$work/$name.log"
    return 1
}

serve small --max-batch 1 --max-queue 1 --kv-cache 64MiB
small=$url
serve plain --kv-cache 256MiB
plain=$url
# A model of two layers answers in milliseconds; most of the time goes into generating requests.
serve tiny --model ../fixtures/granite-3-tiny --chat-template chatml-tools.jinja --max-tokens 16
tiny=$url
serve thinking --model ../fixtures/granite-4.2-tiny
thinking=$url
key=clients-key
echo "$key" >"$work/keys"
serve keyed --model ../fixtures/granite-4.2-tiny --api-key-file "$work/keys" --admin-listen 127.0.0.1:0
keyed=$url
serve tools --kv-cache 256MiB --chat-template chatml-tools.jinja
# Set after the servers have started, which would refuse them as misspelt variables of their own.
export MICROGRANITE_URL=$plain MICROGRANITE_SMALL_URL=$small MICROGRANITE_TOOLS_URL=$url
export MICROGRANITE_THINKING_URL=$thinking MICROGRANITE_KEYED_URL=$keyed MICROGRANITE_KEY=$key
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_HOME=$work/hf
# LiteLLM would fetch a list of prices from the network.
export OPENAI_API_KEY=none LANGSMITH_TRACING=false TQDM_DISABLE=1 LITELLM_LOCAL_MODEL_COST_MAP=True

tests=(
    openai_completions langchain_completions lm_eval_completions structured_completions openai_chat openai_thinking
    langchain_chat litellm_chat mellea_chat granite_io_chat openai_responses anthropic_messages
)
for test in "${tests[@]}"; do
    echo "--- $test"
    "$venv/bin/python" "$test.py"
done
echo "--- ai-sdk"
node "$node/ai-sdk/chat.mjs"
echo "--- page"
node "$node/page/page.mjs"

# The times mean nothing here; this checks that the three measurements complete.
echo "--- load"
"$venv/bin/python" load.py "$MICROGRANITE_URL" clients --clients 4 --rounds 2 --prompt 64 --tokens 8
"$venv/bin/python" load.py "$MICROGRANITE_URL" quote --rounds 1 --tokens 32
"$venv/bin/python" load.py "$MICROGRANITE_URL" beside --prompt 256

echo "--- fuzz"
CLIENTS_VENV=$venv ./fuzz.sh "$tiny" "${FUZZ_CASES:-20}"
echo "--- bombs"
"$venv/bin/python" bombs.py "$tiny" --seconds 5
