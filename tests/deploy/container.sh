#!/usr/bin/env bash
# Builds the image's runtime stage around a static binary, runs it the way the Kubernetes manifests do (not root, read-only
# root, no capabilities, no new privileges, a memory limit, the model mounted read-only), and sends it requests. Then the same
# for the image that contains a packed model, with nothing mounted and no argument.
#
#   tests/deploy/container.sh MODEL.gguf [BINARY]
#
# BINARY is what release/binary.sh prints, which runs first without it. The Dockerfile's builder stage is replaced by a
# folder that the same scripts fill, so no base image is pulled. Needs root, buildah, podman, runc and curl.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/deploy/podman.sh
. tests/deploy/podman.sh

model=$(realpath "$1")
scratch=$(mktemp -d)
name=microgranite-check-$$
trap 'podman rm --force "$name" >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT
binary=$(realpath "${2:-$(release/binary.sh)}")
says=$("$binary" --version | sed -n 's/.*(build \(.*\))$/\1/p')
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}
export SOURCE_DATE_EPOCH

use_storage "$scratch"

contains "the binary" "statically linked" "$(ldd "$binary" 2>&1 || true)"

mkdir -p "$scratch/builder/stage"
release/stage.sh "$binary" "$scratch/builder/stage"
build_image() { # build_image TARGET TAG ARGUMENT…: stage TARGET of the Dockerfile
    buildah bud --isolation chroot --timestamp "$SOURCE_DATE_EPOCH" --target "$1" --tag "localhost/$2" \
        --build-arg "MICROGRANITE_BUILD=$says" --build-arg VERSION="$("$binary" --version | cut -d ' ' -f 2)" \
        --build-context builder="$scratch/builder" "${@:3}" . >"$scratch/build.log" 2>&1 ||
        { cat "$scratch/build.log"; exit 1; }
}
of_image() { podman image inspect --format "$1" localhost/microgranite; }
build_image runtime microgranite
size=$(of_image '{{.Size}}')
check "the image has at most 30 MB ($size bytes)" yes "$([ "$size" -le 30000000 ] && echo yes || echo no)"
check "label of the revision" "$says" "$(of_image '{{index .Labels "org.opencontainers.image.revision"}}')"
# The same inputs and the same SOURCE_DATE_EPOCH give the same image.
digest=$(of_image '{{.Digest}}')
build_image runtime microgranite --no-cache
check "the digest of a second build" "$digest" "$(of_image '{{.Digest}}')"

read -r api admin packed < <(free_ports 3)

# The model fits so little memory because the default limits on clients are lower then.
podman run --detach --name "$name" --network=host \
    --read-only --read-only-tmpfs=false --tmpfs /tmp:size=16m \
    --cap-drop=ALL --security-opt=no-new-privileges --memory=512m \
    --volume "$model:/models/model.gguf:ro" \
    localhost/microgranite \
    serve --model /models/model.gguf --served-model-name demo --kv-cache 64MiB --threads 2 \
    --listen "127.0.0.1:$api" --admin-listen "127.0.0.1:$admin" --drain-timeout 10 --log-format json >/dev/null

wait_ready "$admin" "$name"
pid=$(process_of "$name")
is_confined "$pid" /models/model.gguf 512
check "system call filter" 2 "$(field_of "$pid" Seccomp)"
files() { podman image save localhost/microgranite | tar -xO --wildcards '*.tar' | tar -t --ignore-zeros | grep -v '/$' | sort | paste -sd ' '; }
documents=usr/share/doc/microgranite
check "regular files in the image" "microgranite $documents/LICENSE $documents/THIRD-PARTY.txt $documents/sbom.cdx.json" "$(files)"

ask() { # ask PORT
    curl --silent --show-error --max-time 60 "http://127.0.0.1:$1/v1/completions" -H 'content-type: application/json' \
        -d '{"model":"demo","prompt":"The capital of France is","max_tokens":8,"temperature":0}' || true
}
answer=$(ask "$api")
echo "answer: $answer"
contains "it says" Paris "$answer"
contains "metrics" "microgranite_build_info{build=\"$says\"" "$(curl --silent "http://127.0.0.1:$admin/metrics")"
echo "resident: $(sed -n 's/^VmRSS:[[:space:]]*//p' "/proc/$pid/status"), at most $(field_of "$pid" VmHWM) kB"

stops "$name"

# The image with the model: nothing mounted, no command. Only the port is another one than 8080.
"$binary" --log warn quantize "$model" --output "$scratch/packed" >/dev/null
podman rm "$name" >/dev/null
build_image packed with-model --build-context model="$scratch/packed" --build-arg MODEL_NAME=demo
podman run --detach --name "$name" --network=host --env "MICROGRANITE_LISTEN=127.0.0.1:$packed" localhost/with-model >/dev/null
wait_ready "$packed" "$name"
contains "the image with the model says" Paris "$(ask "$packed")"
echo "its size: $(podman image inspect --format '{{.Size}}' localhost/with-model) bytes"
stops "$name"

summary
