#!/usr/bin/env bash
# Makes everything that a release consists of, from static binaries, one for each processor:
#
#   release/build.sh OUT [BINARY…]
#
#   OUT/microgranite-VERSION-MACHINE-linux.tar.gz     program, manual, completions, systemd units
#   OUT/microgranite-VERSION-py3-none-….whl           for pip and uv
#   OUT/microgranite_VERSION_ARCHITECTURE.deb         for apt
#   OUT/microgranite-VERSION-MACHINE.cdx.json         a CycloneDX bill of materials
#   OUT/microgranite-VERSION-source.tar.gz            what the program was built from (only in a git repository)
#   OUT/microgranite.rb                               the formula for Homebrew (likewise)
#   OUT/SHA256SUMS
#
# Without BINARY it is built first, for this machine. The same sources, toolchain and C library give the same bytes:
# release/README.md says how that is checked. RELEASE_URL is the address under which the files will be published, for the
# formula; without it the formula takes them from OUT. Needs cargo, git, Python 3.11 and dpkg-deb.
set -euo pipefail
if [ $# -lt 1 ]; then
    echo "usage: release/build.sh OUT [BINARY…]" >&2
    exit 64
fi
mkdir -p "$1"
out=$(realpath "$1")
shift
binaries=()
for binary; do binaries+=("$(realpath "$binary")"); done
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || binaries=("$(release/binary.sh)")

# The time in all files is that of the commit. A source archive has no commit, and takes the earliest time that a wheel can hold.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
export SOURCE_DATE_EPOCH
umask 022
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
build=$("${binaries[0]}" --version | sed -n 's/.*(build \(.*\))$/\1/p')
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Sorted names, one time, no owner and no name or time of its own in the gzip header.
pack() { # pack FOLDER ARCHIVE: packs the folder under its own name
    tar --create --directory "$(dirname "$1")" --format=gnu --sort=name --mtime="@$SOURCE_DATE_EPOCH" \
        --owner=0 --group=0 --numeric-owner --mode=u+rwX,go+rX-w "$(basename "$1")" | gzip --best --no-name >"$2"
}
declare -A archives=()
for binary in "${binaries[@]}"; do
    machine=$(release/elf.py "$binary")
    if [ "$("$binary" --version | sed -n 's/.*(build \(.*\))$/\1/p')" != "$build" ]; then
        echo "$binary is of another build than ${binaries[0]}" >&2
        exit 65
    fi
    stage=$scratch/$machine
    mkdir "$stage" # Fails if two are for the same processor.
    release/stage.sh "$binary" "$stage"
    name=microgranite-$version-$machine-linux
    mkdir "$scratch/$name"
    cp -r "$stage/." README.md CHANGELOG.md deploy/systemd "$scratch/$name/"
    pack "$scratch/$name" "$out/$name.tar.gz"
    archives[$machine]=$name.tar.gz
    python3 release/wheel.py "$stage" "$out" >/dev/null
    release/deb.sh "$stage" "$out" >/dev/null
    cp "$stage/sbom.cdx.json" "$out/microgranite-$version-$machine.cdx.json"
done

# What the formula downloads on this processor: the archive, or the sources where there is none.
download() { # download MACHINE
    local file=${archives[$1]-microgranite-$version-source.tar.gz}
    echo "    url \"${RELEASE_URL:-file://$out}/$file\""
    echo "    sha256 \"$(sha256sum "$out/$file" | cut -d ' ' -f 1)\""
    [ -n "${archives[$1]-}" ] || echo '    depends_on "rust" => :build'
}
if git rev-parse --verify --quiet HEAD >/dev/null; then
    git archive --prefix="microgranite-$version/" HEAD | gzip --best --no-name >"$out/microgranite-$version-source.tar.gz"
    formula=$(<release/microgranite.rb)
    formula=${formula//@URL@/"${RELEASE_URL:-file://$out}"}
    formula=${formula//@VERSION@/"$version"}
    formula=${formula//@BUILD@/"$build"}
    formula=${formula/@X86_64@/"$(download x86_64)"}
    printf '%s\n' "${formula/@AARCH64@/"$(download aarch64)"}" >"$out/microgranite.rb"
fi

cd "$out"
# The formula is not among them, because it depends on where the files are published.
sha256sum microgranite?"$version"* >"$scratch/sums"
mv "$scratch/sums" SHA256SUMS
cat SHA256SUMS
