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
if [ -n "$(ls -A "$out")" ]; then
    echo "release/reproduce.sh: $out is not empty, and what is in it would be compared, too" >&2
    exit 64
fi
repository=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

git clone --quiet "$repository" "$scratch/first"
"$scratch/first/release/build.sh" "$out"
# A release build takes gigabytes.
rm -rf "$scratch/first"

# The second has another depth, another time zone, and a umask that also its sources have been written with.
umask 077
export TZ=Asia/Tokyo
git clone --quiet "$repository" "$scratch/a/second/folder"
"$scratch/a/second/folder/release/build.sh" "$scratch/again"
diff "$out/SHA256SUMS" "$scratch/again/SHA256SUMS"
echo "two builds, the same files"
