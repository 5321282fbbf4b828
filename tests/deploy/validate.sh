#!/usr/bin/env bash
# Renders the Helm chart and the kustomizations, and checks what they make: chart.py says what. Then policies: checkov.
#
#   tests/deploy/validate.sh BINARY
#
# Needs python3 with venv, npm, and package indexes for the tools; they are kept in target/deploy-tools.
set -euo pipefail
if [ $# -lt 1 ] || [ ! -x "$1" ]; then
    sed -n '2,6s/^# //p' "$0" >&2
    exit 64
fi
binary=$(realpath "$1")
cd "$(dirname "$0")/../.."

tools=$PWD/target/deploy-tools
tests/deploy/tools.sh "$tools"
export PATH="$tools/bin:$PATH" TYPES="$tools/types" KSERVE="$tools/kserve/kserve/models"

python tests/deploy/chart.py "$binary"

# Policies of the pods. Those that are left out, and why:
#   CKV_K8S_21  the namespace: it is the release's, and nothing that is rendered names it
#   CKV_K8S_43  the image's digest: there is none before the image is pushed, and the notes ask for it
#   CKV_K8S_35  secrets as files: the hub's token is a variable of the init container alone, whose folder for a file must be writable
#   CKV_K8S_15  pulling the image always: with a digest it cannot change, and without one the notes ask for it
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for values in tests/deploy/values/*.yaml; do
    helm template granite deploy/helm/microgranite --values "$values" >"$scratch/$(basename "$values")" 2>/dev/null
done
checkov --skip-download --quiet --compact --framework kubernetes --directory "$scratch" \
    --skip-check CKV_K8S_21,CKV_K8S_43,CKV_K8S_35,CKV_K8S_15
echo "checkov: no finding"
