#!/usr/bin/env bash
# Makes a release from a static binary and installs each of its files the way users do:
#
#   tests/deploy/packages.sh MODEL.gguf [BINARY]
#
# The wheel goes into an empty virtual environment, the Debian package into an empty root, the archive and the formula into
# empty folders. What the wheel installed answers a request. The bill of materials, the compose file and the units are checked
# against the definitions of their formats. BINARY is what release/binary.sh prints, which runs first without it.
# Needs root, python3 with venv, pip, dpkg, ruby, systemd-analyze, strace, promtool and curl.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/deploy/checks.sh
. tests/deploy/checks.sh
if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: tests/deploy/packages.sh MODEL.gguf [BINARY]" >&2
    exit 64
fi

model=$(realpath "$1")
binary=$(realpath "${2:-$(release/binary.sh)}")
scratch=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2>/dev/null || true; rm -rf "$scratch"' EXIT

# Made twice, the second time under another path and with other permissions for new files.
release/build.sh "$scratch/out" "$binary" >/dev/null 2>&1
(umask 077 && release/build.sh "$scratch/again/out" "$binary" >/dev/null 2>&1)
check "two releases from one binary" "$(sha256sum <"$scratch/out/SHA256SUMS")" "$(sha256sum <"$scratch/again/out/SHA256SUMS")"
cd "$scratch/out"
succeeds "the checksums" sha256sum --check SHA256SUMS
ls -l
cd - >/dev/null
says=$("$binary" --version)

echo "--- the wheel"
python3 -m venv "$scratch/venv"
start=$(date +%s%N)
succeeds "pip install" "$scratch/venv/bin/pip" install --quiet --no-index "$scratch"/out/*.whl
port=$(python3 -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
MICROGRANITE_LISTEN=127.0.0.1:$port "$scratch/venv/bin/microgranite" serve "$model" --served-model-name demo 2>"$scratch/serve.log" &
server=$!
answer=
for _ in $(seq 300); do
    answer=$(curl --silent --fail --max-time 60 "http://127.0.0.1:$port/v1/completions" -H 'content-type: application/json' \
        -d '{"model":"demo","prompt":"The capital of France is","max_tokens":1,"temperature":0}' || true)
    [ -z "$answer" ] || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
echo "from pip install to the first token: $((($(date +%s%N) - start) / 1000000)) ms"
[ -n "$answer" ] || cat "$scratch/serve.log"
check "it says" " Paris" "$(python3 -c 'import json, sys; print(json.loads(sys.argv[1] or "{}").get("choices", [{}])[0].get("text"))' "$answer")"
kill "$server"
wait "$server" || true
server=
check "its version" "$says" "$("$scratch/venv/bin/microgranite" --version)"
succeeds "pip uninstall" "$scratch/venv/bin/pip" uninstall --quiet --yes microgranite
check "what is left of it" "" "$(find "$scratch/venv" -iname '*microgranite*')"

echo "--- lookups of names"
# A static program must not load modules of the machine's C library, which may be of another version. `trap` is none that
# exists; a program that heeds this file looks for it.
echo "hosts: trap files dns" >"$scratch/nsswitch.conf"
# The command fails, because nobody listens there.
unshare --mount bash -s -- "$scratch" "$binary" 2>"$scratch/output" <<'LOOKUP' || true
mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
HF_ENDPOINT=http://localhost:1 strace -f -e trace=open,openat -o "$1/trace" "$2" pull hf:owner/name
LOOKUP
check "files that a lookup opens" "/etc/hosts" "$(grep -oE '/etc/hosts|libnss_[a-z]+' "$scratch/trace" | sort -u | paste -sd ' ')"

echo "--- the Debian package"
root=$scratch/root
mkdir -p "$root/var/lib/dpkg/updates" "$root/var/lib/dpkg/info"
touch "$root/var/lib/dpkg/status"
# The maintainer scripts run without a chroot, because the root has no shell; they honour DPKG_ROOT.
debian() { dpkg --root="$root" --force-script-chrootless --force-not-root --log="$scratch/dpkg.log" "$@"; }
succeeds "dpkg --install" debian --install "$scratch"/out/*.deb
check "its version" "$says" "$("$root/usr/bin/microgranite" --version)"
check "configuration files" /etc/default/microgranite "$(dpkg-query --admindir "$root/var/lib/dpkg" --show --showformat '${Conffiles}' microgranite | awk '{ print $1 }')"
check "files that everybody may change" "" "$(find "$root/usr" "$root/etc" ! -type l -perm /022)"
for page in "$root"/usr/share/man/man1/*.1.gz; do
    [ -z "$(LC_ALL=C.UTF-8 man --warnings --local-file "$page" 2>&1 >/dev/null)" ] || { check "warnings of $page" "" some; }
done
succeeds "completions for bash" bash -c "source $root/usr/share/bash-completion/completions/microgranite && complete -p microgranite"
unit=$root/usr/lib/systemd/system/microgranite.service
sed "s|/usr/bin/microgranite|$root&|" "$unit" >"$scratch/microgranite.service"
cp "$root/usr/lib/systemd/system/microgranite.socket" "$scratch"
succeeds "systemd-analyze verify" systemd-analyze --man=no verify "$scratch/microgranite.service" "$scratch/microgranite.socket"
# Ten times the exposure level that systemd shows. Without confinement it is 96.
exposure() { systemd-analyze --offline=yes --threshold=15 security "$unit" | tee "$scratch/exposure"; }
succeeds "systemd-analyze security" exposure
grep -h "exposure level" "$scratch/exposure"
mkdir -p "$root/var/cache/private/microgranite"
succeeds "dpkg --purge" debian --purge microgranite
check "what is left of it" "" "$(find "$root" -iname '*microgranite*' ! -path '*/var/log/*')"

echo "--- the archive and the formula"
mkdir "$scratch/unpacked"
tar --extract --strip-components=1 --directory "$scratch/unpacked" --file "$(echo "$scratch"/out/*-linux.tar.gz)"
check "its version" "$says" "$("$scratch/unpacked/microgranite" --version)"
succeeds "the formula" ruby tests/deploy/formula.rb "$scratch/out/microgranite.rb" "$scratch/prefix"
check "what it installed" "$says" "$("$scratch/prefix/bin/microgranite" --version)"

echo "--- formats"
"$scratch/venv/bin/pip" install --quiet 'cyclonedx-python-lib[json-validation]==11.12.0' compose-spec==0.2.1
succeeds "the bill of materials" "$scratch/venv/bin/python" - "$scratch"/out/*.cdx.json <<'CHECK'
import json, pathlib, sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

text = pathlib.Path(sys.argv[1]).read_text()
problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
assert problem is None, problem
parts = {part["name"]: part for part in json.loads(text)["components"]}
# One crate that is linked, one macro that only runs while the program is built, and what is no crate.
assert parts["axum"]["scope"] == "required" and parts["serde_derive"]["scope"] == "excluded"
assert {"glibc", "rust-std"} <= parts.keys() and "proptest" not in parts
assert all("licenses" in part for part in parts.values())
CHECK
compose() { "$scratch/venv/bin/python" - "$1"; }
succeeds "the compose file" compose deploy/compose/compose.yaml <<'CHECK'
import pathlib, re, sys
from compose_spec import PyCompose

text = pathlib.Path(sys.argv[1]).read_text()
# As compose does: ${NAME:-default} and ${NAME:?what it is}.
text = re.sub(r"\$\{\w+:(.)([^}]*)\}", lambda found: found[2] if found[1] == "-" else "/given", text)
compose = PyCompose.from_yaml(text)
compose.validate()
folder = pathlib.Path(sys.argv[1]).parent
for service in compose.service_names():
    for mount in re.findall(r"- (\.[^:\s]*):", text):
        assert (folder / mount).exists(), f"{service}: {mount} does not exist"
# The check itself: a misspelt key is refused.
try:
    PyCompose.from_yaml(text.replace("cap_drop", "cap_dropp")).validate()
except Exception:
    sys.exit(0)
sys.exit("a misspelt key was accepted")
CHECK
succeeds "promtool check config" promtool check config deploy/compose/prometheus.yml

summary
