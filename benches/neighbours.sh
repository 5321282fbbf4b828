#!/usr/bin/env bash
# Measures how much other busy processes slow a server down: the tokens per second of one stream with 1, 2, … threads,
# while 0, 1, 2, … other processes keep a core each busy. All combinations are measured in every round, because the speed
# of the machine may change meanwhile; the medians are printed.
#
#   benches/neighbours.sh target/release/microgranite [ROUNDS]
set -euo pipefail

binary=${1:?"usage: $0 BINARY [ROUNDS]"}
rounds=${2:-3}
cores=$(nproc)
neighbours=()
trap 'kill "${neighbours[@]}" 2>/dev/null || true' EXIT

speed() { # speed THREADS: tokens per second of one stream of a small shape
    "$binary" bench --shape granite-4.0-350m --threads "$1" --prompt 16 --batch 1 --json |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["decode"][0]["tok_s"])'
}

results=$(mktemp)
for ((round = 0; round < rounds; round++)); do
    for ((busy = 0; busy <= cores; busy++)); do
        neighbours=()
        for ((n = 0; n < busy; n++)); do
            sh -c 'while :; do :; done' &
            neighbours+=($!)
        done
        for ((threads = 1; threads <= cores; threads++)); do
            echo "$busy $threads $(speed "$threads")" >>"$results"
        done
        [ "$busy" -eq 0 ] || { kill "${neighbours[@]}"; wait "${neighbours[@]}" 2>/dev/null || true; }
    done
done
python3 - "$results" <<'PYTHON'
import collections, statistics, sys

runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    busy, threads, speed = line.split()
    runs[int(busy), int(threads)].append(float(speed))
print("busy neighbours  threads  tokens/s  of one thread's")
for (busy, threads), speeds in sorted(runs.items()):
    median = statistics.median(speeds)
    print(f"{busy:15}  {threads:7}  {median:8.1f}  {median / statistics.median(runs[busy, 1]):15.2f}")
PYTHON
rm -f "$results"
