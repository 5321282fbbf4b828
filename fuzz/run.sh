#!/usr/bin/env bash
# Builds the fuzz targets with AddressSanitizer and runs each for some time:
#     fuzz/run.sh SECONDS [TARGET…]
# Stable Rust builds them too: RUSTC_BOOTSTRAP unlocks the sanitizer and the coverage. What is found stays in
# fuzz/corpus and fuzz/artifacts. The first build compiles every dependency again, which takes 15 CPU-minutes.
set -euo pipefail
if [ $# -lt 1 ]; then
    sed -n '2,3s/^# //p' "$0" >&2
    exit 64
fi
cd "$(dirname "$0")"

seconds=$1
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n 's/^    ("\([a-z]*\)", .*/\1/p' src/main.rs)

host=$(rustc -vV | sed -n 's/^host: //p')
# As cargo-fuzz sets them. Coverage of the dependencies is part of it: most of the parsers are theirs.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Zsanitizer=address -Ccodegen-units=16"
# The program's own versions; what only this package needs is added.
cp ../Cargo.lock Cargo.lock
# With --target, build scripts and macros are not instrumented.
cargo build --release --target "$host"
binary=target/$host/release/fuzz

passed=0
failed=0
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    seeds=()
    [ ! -d "seeds/$target" ] || seeds+=("seeds/$target")
    log=$(mktemp)
    # Memory: the sanitizer triples it. Time: a single input may take five seconds, as slow as this build is.
    if TARGET=$target ASAN_OPTIONS=detect_leaks=0 "$binary" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=2048 \
        -max_len=65536 -print_final_stats=1 -artifact_prefix="artifacts/$target/" "corpus/$target" "${seeds[@]}" >"$log" 2>&1; then
        passed=$((passed + 1))
        echo "ok      $target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s, coverage $(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)"
    else
        failed=$((failed + 1))
        echo "FAILED  $target: see below; the input is in fuzz/artifacts/$target"
        tail -60 "$log"
    fi
    rm "$log"
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
