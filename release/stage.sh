#!/usr/bin/env bash
# Lays out the files that every package carries, each under the name that packages look for:
#
#   release/stage.sh BINARY STAGE
#
#   STAGE/microgranite         the program
#   STAGE/sbom.cdx.json        what it consists of, in CycloneDX
#   STAGE/LICENSE, STAGE/THIRD-PARTY.txt
#   STAGE/man/, STAGE/completions/
#
# BINARY comes from release/binary.sh, and prints the manual pages and completions itself: the kernel must be able to start it,
# if need be through an emulator (`tests/aarch64/run.sh binfmt`). Needs cargo and Python 3.11; SOURCE_DATE_EPOCH is the time in the files.
set -euo pipefail
if [ $# -ne 2 ]; then
    echo "usage: release/stage.sh BINARY STAGE" >&2
    exit 64
fi
binary=$(realpath "$1")
stage=$(realpath "$2")
cd "$(dirname "$0")/.."

mkdir -p "$stage/man" "$stage/completions"
install -m 755 "$binary" "$stage/microgranite"
install -m 644 LICENSE "$stage/LICENSE"
release/sbom.py bom "$binary" >"$stage/sbom.cdx.json"
release/sbom.py licences "$binary" >"$stage/THIRD-PARTY.txt"
"$binary" man --output "$stage/man"
# Under the names by which each shell finds them.
"$binary" completions bash >"$stage/completions/microgranite"
"$binary" completions zsh >"$stage/completions/_microgranite"
"$binary" completions fish >"$stage/completions/microgranite.fish"
