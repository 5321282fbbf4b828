# Sourced by the checks that run containers: storage of their own for podman and buildah, and what a container is like from outside.
# shellcheck shell=bash

# shellcheck source=tests/deploy/checks.sh
. tests/deploy/checks.sh

use_storage() { # use_storage FOLDER [SETTING]: SETTING is a line for [engine]
    # Nothing of the run remains elsewhere. vfs works where overlay mounts do not nest; runc and cgroupfs work without systemd.
    cat >"$1/storage.conf" <<CONF
[storage]
driver = "vfs"
graphroot = "$1/images"
runroot = "$1/run"
CONF
    cat >"$1/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
${2:-}
CONF
    export CONTAINERS_STORAGE_CONF=$1/storage.conf CONTAINERS_CONF=$1/containers.conf
}

# Containers get the host's network, because a sandbox may lack a bridge.
free_ports() { # free_ports COUNT: prints ports that are free now
    python3 -c 'import socket, sys
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in sockets))' "$1"
}

wait_ready() { # wait_ready PORT CONTAINER
    local status=none
    for _ in $(seq 300); do
        status=$(curl --silent --output /dev/null --write-out '%{http_code}' "http://127.0.0.1:$1/readyz" || true)
        [ "$status" = 200 ] && break
        sleep 0.2
    done
    check "ready" 200 "$status"
    [ "$status" = 200 ] || podman logs "$2"
}

process_of() { podman inspect --format '{{.State.Pid}}' "$1"; } # process_of CONTAINER
field_of() { sed -n "s/^$2:[[:space:]]*\([^[:space:]]*\).*/\1/p" "/proc/$1/status"; } # field_of PROCESS FIELD
mount_of() { awk -v path="$2" '$5 == path { split($6, options, ","); print options[1] }' "/proc/$1/mountinfo"; } # mount_of PROCESS PATH

is_confined() { # is_confined PROCESS MODEL MEBIBYTES: its user, its restrictions, where it finds its model, and its memory
    check "user" 65532 "$(field_of "$1" Uid)"
    check "capabilities" 0000000000000000 "$(field_of "$1" CapEff)"
    check "no new privileges" 1 "$(field_of "$1" NoNewPrivs)"
    check "root is mounted" ro "$(mount_of "$1" /)"
    check "the model is mounted" ro "$(mount_of "$1" "$2")"
    # The file of version 1 of control groups, or of version 2.
    local limit
    limit=$(cat "/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' "/proc/$1/cgroup")/memory.limit_in_bytes" 2>/dev/null ||
        cat "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$1/cgroup")/memory.max")
    check "memory limit" $(($3 << 20)) "$limit"
}

stops() { # stops CONTAINER: SIGTERM ends it in time
    podman stop --time 20 "$1" >/dev/null
    check "exit code after SIGTERM" 0 "$(podman inspect --format '{{.State.ExitCode}}' "$1")"
}
