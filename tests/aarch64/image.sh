#!/usr/bin/env bash
# Builds the image's runtime stage for two processors from static binaries, joins both in a manifest list, runs that for ARM
# through an emulator (`run.sh binfmt`) as the Kubernetes manifests do, and compares its answers with this machine's.
#
#   tests/aarch64/image.sh ARM NATIVE [PROCESSOR=INSTRUCTIONS…]
#
# Nothing is pulled: a folder that the release scripts fill takes the place of the Dockerfile's builder stage. Needs root,
# buildah, podman, runc and Python. tests/deploy/container.sh checks the image for this machine more closely.
set -euo pipefail
arm=$(realpath "$1")
native=$(realpath "$2")
pairs=("${@:3}")
cd "$(dirname "$0")/../.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
export SOURCE_DATE_EPOCH

# shellcheck source=tests/deploy/podman.sh
. tests/deploy/podman.sh
use_storage "$scratch"

list=localhost/microgranite:all
buildah manifest create $list >/dev/null
for binary in "$native" "$arm"; do
    architecture=$(release/elf.py "$binary" --debian)
    mkdir -p "$scratch/$architecture/stage"
    release/stage.sh "$binary" "$scratch/$architecture/stage"
    buildah bud --isolation chroot --platform "linux/$architecture" --timestamp "$SOURCE_DATE_EPOCH" --target runtime --manifest $list \
        --build-arg VERSION="$("$binary" --version | cut -d ' ' -f 2)" --build-context builder="$scratch/$architecture" . \
        >"$scratch/log" 2>&1 || { cat "$scratch/log"; exit 1; }
done
architectures() { python3 -c 'import json, sys
print(*sorted(image["platform"]["architecture"] for image in json.load(sys.stdin)["manifests"]))'; }
check "the list has images for" "amd64 arm64" "$(buildah manifest inspect $list | architectures)"
buildah manifest push --quiet --all $list "oci:$scratch/oci:all" >/dev/null
index() { python3 -c 'import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
blob = lambda digest: folder / "blobs" / digest.replace(":", "/")
[pushed] = json.loads((folder / "index.json").read_text())["manifests"]
print(blob(pushed["digest"]).read_text())' "$1"; }
check "pushed, it has images for" "amd64 arm64" "$(index "$scratch/oci" | architectures)"

# A program for serve.py: each call is a container that may write nothing.
cat >"$scratch/microgranite" <<RUN
#!/bin/sh
exec podman run --rm --quiet --platform linux/arm64 --network=host --env QEMU_CPU --read-only --read-only-tmpfs=false --tmpfs /tmp:size=16m \
    --cap-drop=ALL --security-opt=no-new-privileges --volume "$PWD/tests/fixtures:$PWD/tests/fixtures:ro" $list "\$@"
RUN
chmod +x "$scratch/microgranite"
check "the image for ARM says" "$("$arm" --version)" "$("$scratch/microgranite" --version)"
code=0
tests/aarch64/serve.py --no-packing "$native" "$scratch/microgranite" "${pairs[@]}" || code=$?
check "exit code of the comparison" 0 "$code"

summary
