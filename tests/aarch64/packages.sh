#!/usr/bin/env bash
# Makes a release from static binaries, of which one is for ARM, and installs what is for ARM as its users do, in folders of
# their own; the kernel starts the program through an emulator (`run.sh binfmt`).
#
#   tests/aarch64/packages.sh BINARY…
#
# Needs root, python3 with pip, dpkg and ruby. tests/deploy/packages.sh does the same for this machine, and more.
set -euo pipefail
binaries=()
for binary; do binaries+=("$(realpath "$binary")"); done
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# shellcheck source=tests/deploy/checks.sh
. tests/deploy/checks.sh
# The version that the program in a folder says, and the processor that it is for.
installed() { # installed FILE
    echo "$("$1" --version), $(release/elf.py "$1")"
}

out=$scratch/out
release/build.sh "$out" "${binaries[@]}" >/dev/null 2>"$scratch/log" || { cat "$scratch/log"; exit 1; }
(umask 077 && release/build.sh "$scratch/again/out" "${binaries[@]}" >/dev/null 2>&1)
check "two releases from the same binaries" "$(sha256sum <"$out/SHA256SUMS")" "$(sha256sum <"$scratch/again/out/SHA256SUMS")"
ls -l "$out"
for binary in "${binaries[@]}"; do
    if [ "$(release/elf.py "$binary")" = aarch64 ]; then says=$(installed "$binary"); fi
done

echo "--- the wheel"
# What pip would choose on a machine with ARM: the newest tags that such a wheel may have there, and the oldest.
for platform in manylinux_2_17_aarch64 musllinux_1_1_aarch64; do
    pip install --quiet --no-index --find-links "$out" --only-binary :all: --platform $platform --target "$scratch/$platform" microgranite
    check "on $platform" "$says" "$(installed "$scratch/$platform/bin/microgranite")"
done
code=0
pip install --quiet --no-index "$out"/*aarch64*.whl --target "$scratch/here" >"$scratch/log" 2>&1 || code=$?
check "pip's exit code for the wheel on $(uname -m)" 1 "$code"

echo "--- the Debian package"
root=$scratch/root
mkdir -p "$root/var/lib/dpkg/updates" "$root/var/lib/dpkg/info"
touch "$root/var/lib/dpkg/status"
debian() { dpkg --root="$root" --force-script-chrootless --force-not-root --log="$scratch/dpkg.log" "$@"; }
debian --add-architecture arm64
debian --install "$out"/*_arm64.deb >"$scratch/log" 2>&1 || cat "$scratch/log"
check "what it installed" "$says" "$(installed "$root/usr/bin/microgranite")"
check "its architecture" arm64 "$(dpkg-query --admindir "$root/var/lib/dpkg" --show --showformat '${Architecture}' microgranite)"
debian --purge microgranite >"$scratch/log" 2>&1 || cat "$scratch/log"
check "what is left of it" "" "$(find "$root" -iname '*microgranite*' ! -path '*/var/log/*')"

echo "--- the archive and the formula"
ruby tests/deploy/formula.rb "$out/microgranite.rb" "$scratch/prefix" arm
check "what the formula installed" "$says" "$(installed "$scratch/prefix/bin/microgranite")"

echo "--- the bill of materials"
bill() { python3 -c 'import json, sys
bill = json.load(open(sys.argv[1]))
[glibc] = [part for part in bill["components"] if part["name"] == "glibc"]
print(bill["metadata"]["properties"][0]["value"], glibc["version"])' "$1"; }
check "its target and C library" "aarch64-unknown-linux-gnu $(dpkg-query --show --showformat '${Version}' libc6-dev-arm64-cross)" "$(bill "$out"/*-aarch64.cdx.json)"

summary
