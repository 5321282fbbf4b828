#!/usr/bin/env bash
# Makes a release of the commit that is checked out twice, in two folders with different paths, and compares the files:
#
#   release/reproduce.sh OUT        the files of the first, if they are equal
#
# Takes two full builds: 25 minutes on two cores.
set -euo pipefail
if [ $# -ne 1 ]; then
    echo "usage: release/reproduce.sh OUT" >&2
    exit 64
fi
mkdir -p "$1"
out=$(realpath "$1")
repository=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The second has another depth and another umask.
for folder in first a/second/folder; do
    git clone --quiet "$repository" "$scratch/$folder"
done
"$scratch/first/release/build.sh" "$out"
(umask 077 && "$scratch/a/second/folder/release/build.sh" "$scratch/again")
diff "$out/SHA256SUMS" "$scratch/again/SHA256SUMS"
echo "two builds, the same files"
