#!/usr/bin/env bash
# Schemathesis against /openapi.json, with requests that the description allows and requests that it does not:
#     tests/clients/fuzz.sh URL CASES       CASES per route, besides those that try each boundary
# Every response must match the description, none may be a server error, and no connection may drop.
set -euo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 64
fi
cd "$(dirname "$0")"

venv=${CLIENTS_VENV:-../../target/clients-venv}
checks=not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance
checks+=,response_schema_conformance,negative_data_rejection,unsupported_method,allow_header_conformance
"$venv/bin/schemathesis" run "$1/openapi.json" --mode all --phases coverage,fuzzing --checks "$checks" \
    --max-examples "$2" --seed 1 --request-timeout 60 --generation-database none \
    --suppress-health-check all --continue-on-failure --no-color
