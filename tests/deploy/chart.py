"""Checks what the Helm chart renders: `validate.sh` runs it, and says what it needs.

Every object of every values file fits the strict schema of each Kubernetes release, or of its custom resource. The manifests of
deploy/kubernetes are what the chart renders today. The memory sum is the server's own. Values that cannot work are refused by name.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import kserve
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/microgranite"
VALUES = sorted((ROOT / "tests/deploy/values").glob("*.yaml"))
# 1.30 is the first release whose preStop knows the `sleep` action without a feature gate.
RELEASES = [f"1.{minor}" for minor in range(30, 38)]
# Volumes from images came with 1.31.
IMAGE_VOLUMES_SINCE = "1.31"
# Custom resources, and where the types of their fields are.
CUSTOM = {
    ("monitoring.coreos.com/v1", "PodMonitor"): "prometheus-operator/monitoring.coreos.com/v1/PodMonitor",
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "prometheus-operator/monitoring.coreos.com/v1/PrometheusRule",
    ("keda.sh/v1alpha1", "ScaledObject"): "keda/keda.sh/v1alpha1/ScaledObject",
}
# Settings that cannot work, and a part of the line that says so.
REFUSED = {
    "cpus=1.5": "/cpus",
    "cpu=4": "'cpu' not allowed",
    "model.source=image": "/model/image/reference",
    "model.source=download": "/model/download/reference",
    "model.source=bucket": "/model/source",
    "model.known=granite-9": 'model.known: "granite-9" is not among granite-3.1-1b-a400m',
    "image.digest=sha256:short": "/image/digest",
    "memory.limit=2Gi": "memory.limit: 2Gi is less than the",
    "memory.limit=lots": "/memory/limit",
    "limits.bodyKiB=65536": "limits.requestMemoryMiB: must be at least four times limits.bodyKiB",
    "autoscaling.by=hpa,autoscaling.minReplicas=9": "autoscaling.minReplicas: must not be above",
    "autoscaling.by=cpu": "/autoscaling/by",
    "shutdown.drainSeconds=0": "/shutdown/drainSeconds",
    "extraArgs={-x}": "/extraArgs/0",
    # The secret of one half; probes and metrics need the admin port as it is.
    "tls.clientCaSecret=clients": "/tls/secret",
    "tls.secret=A/B": "/tls/secret",
    "tls.cert=granite-tls": "'cert' not allowed",
    "extraArgs={--tls-cert=/etc/cert}": "/extraArgs/0",
    "extraArgs={--admin-tls}": "/extraArgs/0",
}

passed, failed = 0, 0


def check(holds, what):
    global passed, failed
    if holds:
        passed += 1
    else:
        failed += 1
        print(f"FAILED  {what}")


def helm(*arguments):
    return subprocess.run(["helm", *arguments], capture_output=True, text=True)


def rendered(*arguments):
    """The objects that the chart renders."""
    made = helm("template", "granite", str(CHART), "--namespace", "serving", *arguments)
    if made.returncode:
        sys.exit(f"helm template {' '.join(arguments)}: {made.stderr}")
    return [document for document in yaml.safe_load_all(made.stdout) if document]


def has_image_volume(object):
    volumes = object["spec"]["template"]["spec"]["volumes"] if object["kind"] == "Deployment" else []
    return any("image" in volume for volume in volumes)


def fits_every_release(name, object):
    for release in RELEASES:
        if has_image_volume(object) and release < IMAGE_VOLUMES_SINCE:
            continue
        try:
            kubernetes_validate.validate(object, release, strict=True)
            problem = None
        except kubernetes_validate.ValidationError as error:
            problem = error.message
        check(problem is None, f"{name}: {object['kind']} in Kubernetes {release}: {problem}")


def types_of_custom(objects):
    """The compiler refuses fields that a custom resource does not have, and values of the wrong type."""
    types = pathlib.Path(os.environ["TYPES"])
    lines = []
    for index, (name, object) in enumerate(objects):
        module = CUSTOM[object["apiVersion"], object["kind"]]
        lines.append(f'import {{I{object["kind"]} as T{index}}} from "@kubernetes-models/{module}";')
        lines.append(f"export const o{index}: T{index} = {json.dumps(object)}; // {name}")
    source = types / "objects.ts"
    source.write_text("\n".join(lines) + "\n")
    compiler = [types / "node_modules/.bin/tsc", "--noEmit", "--strict", "--skipLibCheck"]
    return subprocess.run(
        [*compiler, "--module", "nodenext", "--moduleResolution", "nodenext", source], capture_output=True, text=True, cwd=types
    )


def kserve_knows(folder):
    """The manifests of deploy/kserve have only fields that KServe knows, and their containers only fields of Kubernetes'."""
    known = kserve.classes(folder)
    kinds = {"ClusterServingRuntime": "V1alpha1ClusterServingRuntime", "InferenceService": "V1beta1InferenceService"}
    for file in sorted((ROOT / "deploy/kserve").glob("*.yaml")):
        object = yaml.safe_load(file.read_text())
        found = list(kserve.problems(object, kinds[object["kind"]], known))
        check(not found, f"{file.name}: {found}")
        if object["kind"] == "ClusterServingRuntime":
            pod = {key: object["spec"][key] for key in ["containers", "volumes"]}
            fits_every_release(file.name, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "runtime"}, "spec": pod})
            object["spec"]["containerz"] = object["spec"].pop("containers")
            found = list(kserve.problems(object, kinds[object["kind"]], known))
            check(len(found) == 1 and "containerz" in found[0], f"a misspelt field was accepted: {found}")


def pods_are_guaranteed(name, deployment):
    pod = deployment["spec"]["template"]["spec"]
    for container in pod["containers"] + pod.get("initContainers", []):
        resources = container["resources"]
        check(resources["requests"] == resources["limits"], f"{name}: {container['name']}: requests are not limits")
        check(resources["limits"]["cpu"].isdigit(), f"{name}: {container['name']}: {resources['limits']['cpu']} CPUs")


def tls_is_mounted_and_probes_are_plain():
    """Both files of a certificate and the authority of clients, each from its secret, and nothing of it without the values."""
    files = {"--tls-cert=/etc/microgranite/tls/tls.crt", "--tls-key=/etc/microgranite/tls/tls.key"}
    authority = "--tls-client-ca=/etc/microgranite/client-ca/ca.crt"
    for setting, flags, secrets in [
        ("cpus=4", set(), []),
        ("tls.secret=granite-tls", files, ["granite-tls"]),
        ("tls.secret=granite-tls,tls.clientCaSecret=granite-tls", {*files, authority}, ["granite-tls"] * 2),
        ("tls.secret=granite-tls,tls.clientCaSecret=clients", {*files, authority}, ["granite-tls", "clients"]),
    ]:
        objects = {object["kind"]: object for object in rendered("--set", setting)}
        pod = objects["Deployment"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        found = {flag for flag in container["args"] if "tls" in flag}
        check(found == flags, f"{setting}: {found}")
        of_volumes = [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume]
        check(of_volumes == secrets, f"{setting}: {of_volumes}")
        check(all(volume["secret"]["defaultMode"] == 0o440 for volume in pod["volumes"] if "secret" in volume), f"{setting}: modes")
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        for flag in flags:
            folder = str(pathlib.PurePosixPath(flag.split("=")[1]).parent)
            at = [mount for mount in mounts.values() if mount["mountPath"] == folder]
            check(len(at) == 1 and at[0]["readOnly"], f"{setting}: {flag} is in no read-only folder")
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
            asks = container[probe]["httpGet"]
            check(asks["port"] == "admin" and asks.get("scheme", "HTTP") == "HTTP", f"{setting}: {probe}: {asks}")
        (port,) = objects["Service"]["spec"]["ports"]
        check(port["appProtocol"] == ("https" if flags else "http"), f"{setting}: {port}")


def sum_in_notes(values):
    """The memory sum in mebibytes that the notes print for these values."""
    notes = helm("install", "granite", str(CHART), "--dry-run=client", "--values", values)
    return int(re.search(r"(\d+) MiB  in all", notes.stdout)[1])


def memory_is_that_of_the_plan(binary, scratch):
    for model in ["granite-3-tiny", "granite-4-hybrid-tiny", "granite-3-moe-tiny", "granite-4.2-tiny-packed"]:
        command = [binary, "inspect", ROOT / "tests/fixtures" / model, "--kubernetes"]
        values = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        file = scratch / f"{model}.yaml"
        file.write_text(values)
        planned = int(re.search(r"(\d+) MiB  in all", values)[1])
        computed = sum_in_notes(str(file))
        check(computed == planned, f"{model}: the chart computes {computed} MiB, the server {planned}")
        print(f"{model}: {planned} MiB in the server's plan, {computed} in the chart's notes")


def main(binary):
    with tempfile.TemporaryDirectory() as folder:
        scratch = pathlib.Path(folder)
        subprocess.run([ROOT / "deploy/kubernetes/render.sh", scratch], check=True)
        for file in sorted(scratch.glob("*.yaml")):
            shipped = (ROOT / "deploy/kubernetes" / file.name).read_text()
            check(file.read_text() == shipped, f"deploy/kubernetes/{file.name} is not what render.sh writes")
        memory_is_that_of_the_plan(binary, scratch)

    custom = []
    sources = [(str(file.relative_to(ROOT)), rendered("--values", str(file))) for file in VALUES]
    for folder in ["deploy/kubernetes", "deploy/grafana"]:
        made = subprocess.run(["kubectl", "kustomize", ROOT / folder], capture_output=True, text=True, check=True)
        sources.append((folder, list(yaml.safe_load_all(made.stdout))))
    kinds = {}
    for name, objects in sources:
        for object in objects:
            kinds[object["kind"]] = kinds.get(object["kind"], 0) + 1
            if (object["apiVersion"], object["kind"]) in CUSTOM:
                custom.append((name, object))
            else:
                fits_every_release(name, object)
            if object["kind"] == "Deployment":
                pods_are_guaranteed(name, object)
    kserve_knows(os.environ["KSERVE"])
    typed = types_of_custom(custom)
    check(typed.returncode == 0, f"custom resources: {typed.stdout}")

    # The checks themselves: a misspelt probe and a misspelt field of a custom resource must be found.
    deployment = next(object for _, objects in sources for object in objects if object["kind"] == "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container["livelinessProbe"] = container.pop("livenessProbe")
    try:
        kubernetes_validate.validate(deployment, RELEASES[-1], strict=True)
        check(False, "a misspelt probe was accepted: the schemas are not strict")
    except kubernetes_validate.ValidationError:
        check(True, "")
    monitor = next(object for _, object in custom if object["kind"] == "PodMonitor")
    monitor["spec"]["podMetricsEndpoints"][0]["pfad"] = "/metrics"
    check("\"pfad\"' does not exist" in types_of_custom([("misspelt", monitor)]).stdout, "a misspelt field was accepted")

    tls_is_mounted_and_probes_are_plain()

    for setting, message in REFUSED.items():
        made = helm("template", "granite", str(CHART), "--set", setting)
        check(made.returncode != 0 and message in made.stderr, f"--set {setting}: {made.stderr or 'accepted'}")

    print("objects:", ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
    print(f"{passed} passed, {failed} failed")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve())
