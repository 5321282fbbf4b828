#!/usr/bin/env bash
# Runs the Deployment that the chart renders, with podman in the place of a kubelet: its user, its restrictions, and the memory
# limit that the chart computes, under which the server must start and answer.
#
#   tests/deploy/play.sh BINARY
#
# Needs root, podman, buildah, runc, curl, and the tools of tests/deploy/tools.sh in target/deploy-tools. Podman knows no NetworkPolicy, no
# preStop and no spreading; chart.py checks the fields of these.
set -euo pipefail
if [ $# -lt 1 ] || [ ! -x "$1" ]; then
    sed -n '2,8s/^# //p' "$0" >&2
    exit 64
fi
binary=$(realpath "$1")
cd "$(dirname "$0")/../.."
export PATH="$PWD/target/deploy-tools/bin:$PATH"
# shellcheck source=tests/deploy/podman.sh
. tests/deploy/podman.sh

scratch=$(mktemp -d)
manifest=$scratch/manifest.yaml
trap 'podman play kube --down "$manifest" >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT

use_storage "$scratch" 'infra_image = "localhost/pause:1"'

# The binary and, if it has any, its libraries. container.sh tests the image that is shipped.
mkdir "$scratch/root"
cp "$binary" "$scratch/root/microgranite"
ldd "$binary" 2>/dev/null | grep -o '/[^ ]*' | while read -r library; do
    mkdir -p "$scratch/root$(dirname "$library")"
    cp -L "$library" "$scratch/root$library"
done || true
printf 'FROM scratch\nCOPY . /\nUSER 65532:65532\nENTRYPOINT ["/microgranite"]\n' >"$scratch/Dockerfile"
buildah bud --isolation chroot --file "$scratch/Dockerfile" --tag localhost/microgranite:test "$scratch/root" >"$scratch/build.log" 2>&1 ||
    { cat "$scratch/build.log"; exit 1; }
# Every pod has a container that holds its network; podman would download it. Any program that waits will do.
printf 'FROM localhost/microgranite:test\nENTRYPOINT ["/catatonit", "-P"]\n' >"$scratch/Dockerfile.pause"
cp "$(command -v catatonit || echo /usr/libexec/podman/catatonit)" "$scratch/root/catatonit"
sed -i 's/^ENTRYPOINT/COPY catatonit \/\nENTRYPOINT/' "$scratch/Dockerfile.pause"
buildah bud --isolation chroot --file "$scratch/Dockerfile.pause" --tag localhost/pause:1 "$scratch/root" >"$scratch/build.log" 2>&1 ||
    { cat "$scratch/build.log"; exit 1; }

# The claim is a volume of the same name.
podman volume create granite-model >/dev/null
volume=$(podman volume inspect --format '{{.Mountpoint}}' granite-model)
cp -r tests/fixtures/granite-3-tiny "$volume/granite"
chmod -R a+rX "$volume"

"$binary" inspect tests/fixtures/granite-3-tiny --kubernetes >"$scratch/values.yaml"
# The manifest's ports are replaced by free ones, and none is mapped.
read -r api admin < <(free_ports 2)
helm template granite deploy/helm/microgranite --values "$scratch/values.yaml" --show-only templates/deployment.yaml \
    --set image.repository=localhost/microgranite,image.tag=test,image.pullPolicy=Never,cpus=1,shutdown.drainSeconds=10 2>/dev/null |
    sed -e '/^ *ports:$/,/containerPort: 9090/d' -e "s/0.0.0.0:8080/127.0.0.1:$api/" -e "s/0.0.0.0:9090/127.0.0.1:$admin/" >"$manifest"
podman play kube --network=host "$manifest" >"$scratch/play.log" 2>&1 || { cat "$scratch/play.log"; exit 1; }
container=$(podman ps --all --filter name=-server --format '{{.Names}}')

wait_ready "$admin" "$container"
pid=$(process_of "$container")
# The limit that the chart computed.
computed=$(sed -n 's/^ *memory: \([0-9]*\)Mi$/\1/p' "$manifest" | head -n 1)
is_confined "$pid" /models "$computed"
answer=$(curl --silent --show-error --max-time 60 "http://127.0.0.1:$api/v1/completions" -H 'content-type: application/json' \
    -d '{"model":"granite","prompt":[1,2,3],"max_tokens":4,"temperature":0}' || true)
check "tokens of an answer" 4 "$(sed -n 's/.*"completion_tokens":\([0-9]*\).*/\1/p' <<<"$answer")"
echo "resident: $(field_of "$pid" VmRSS) kB of $((computed << 10)) kB"

stops "$container"
summary
