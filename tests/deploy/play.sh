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

scratch=$(mktemp -d)
manifest=$scratch/manifest.yaml
trap 'podman play kube --down "$manifest" >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT

# Uses separate storage, so that nothing of this run remains, as container.sh does.
cat >"$scratch/storage.conf" <<CONF
[storage]
driver = "vfs"
graphroot = "$scratch/images"
runroot = "$scratch/run"
CONF
cat >"$scratch/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
infra_image = "localhost/pause:1"
CONF
export CONTAINERS_STORAGE_CONF=$scratch/storage.conf CONTAINERS_CONF=$scratch/containers.conf

passed=0
failed=0
check() { # check WHAT EXPECTED SEEN
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
        echo "ok      $1: $3"
    else
        failed=$((failed + 1))
        echo "FAILED  $1: expected $2, saw $3"
    fi
}

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
# Podman gets the host's network, because a sandbox may lack a bridge: ports that are free now, and none to map.
read -r api admin < <(python3 -c 'import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(s.getsockname()[1] for s in sockets))')
helm template granite deploy/helm/microgranite --values "$scratch/values.yaml" --show-only templates/deployment.yaml \
    --set image.repository=localhost/microgranite,image.tag=test,image.pullPolicy=Never,cpus=1,shutdown.drainSeconds=10 2>/dev/null |
    sed -e '/^ *ports:$/,/containerPort: 9090/d' -e "s/0.0.0.0:8080/127.0.0.1:$api/" -e "s/0.0.0.0:9090/127.0.0.1:$admin/" >"$manifest"
podman play kube --network=host "$manifest" >"$scratch/play.log" 2>&1 || { cat "$scratch/play.log"; exit 1; }
container=$(podman ps --all --filter name=-server --format '{{.Names}}')

status=none
for _ in $(seq 300); do
    status=$(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$admin/readyz" || true)
    [ "$status" = 200 ] && break
    sleep 0.2
done
check "ready" 200 "$status"
[ "$status" = 200 ] || podman logs "$container"

pid=$(podman inspect --format '{{.State.Pid}}' "$container")
of_process() { sed -n "s/^$1:[[:space:]]*\([^[:space:]]*\).*/\1/p" "/proc/$pid/status"; }
mount_of() { awk -v path="$1" '$5 == path { split($6, options, ","); print options[1] }' "/proc/$pid/mountinfo"; }
check "user" 65532 "$(of_process Uid)"
check "capabilities" 0000000000000000 "$(of_process CapEff)"
check "no new privileges" 1 "$(of_process NoNewPrivs)"
check "root is mounted" ro "$(mount_of /)"
check "the model is mounted" ro "$(mount_of /models)"
# The limit that the chart computed, in the file of version 1 of control groups or of version 2.
computed=$(sed -n 's/^ *memory: \([0-9]*\)Mi$/\1/p' "$manifest" | head -n 1)
limit=$(cat "/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' "/proc/$pid/cgroup")/memory.limit_in_bytes" 2>/dev/null ||
    cat "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$pid/cgroup")/memory.max")
check "memory limit" $((computed << 20)) "$limit"
answer=$(curl --silent --show-error --max-time 60 "http://127.0.0.1:$api/v1/completions" -H 'content-type: application/json' \
    -d '{"model":"granite","prompt":[1,2,3],"max_tokens":4,"temperature":0}' || true)
check "tokens of an answer" 4 "$(sed -n 's/.*"completion_tokens":\([0-9]*\).*/\1/p' <<<"$answer")"
echo "resident: $(of_process VmRSS) kB of $((computed << 10)) kB"

podman stop --time 20 "$container" >/dev/null
check "exit code after SIGTERM" 0 "$(podman inspect --format '{{.State.ExitCode}}' "$container")"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
