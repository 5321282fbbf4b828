#!/usr/bin/env bash
# Renders the Helm chart with values.yaml into the manifests of this folder, or of the one given. Needs helm 3.8 or newer.
#
#   deploy/kubernetes/render.sh [FOLDER]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
to=${1:-$here}

declare -A manifests=([deployment]=deployment [service]=service [networkpolicy]=networkpolicy [podmonitor]=monitor)
for manifest in "${!manifests[@]}"; do
    {
        echo "# Rendered from deploy/helm/microgranite by render.sh: change it there."
        # These objects belong to no release, and the namespace is chosen when they are applied.
        helm template microgranite "$here/../helm/microgranite" --values "$here/values.yaml" \
            --show-only "templates/${manifests[$manifest]}.yaml" 2>/dev/null |
            sed -e '/^---$/d' -e '/^# Source: /d' -e '/app.kubernetes.io\/managed-by: Helm$/d' -e '/^$/d'
    } >"$to/$manifest.yaml"
done
