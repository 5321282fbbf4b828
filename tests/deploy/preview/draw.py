#!/usr/bin/env python3
"""Draws the dashboards over what a Prometheus has really scraped from the service under load, in Chromium.

    tests/deploy/preview/draw.py BINARY MODEL FOLDER [SECONDS]

Writes FOLDER/memory.png, load.png and slo.png. The page is our own and draws what Grafana would, in its places, with the same queries and
units, so it is a preview of the content, not of Grafana. Needs Debian's chromium, prometheus and openssl. Fails if a panel has no data that
needs neither a cluster nor a processor that counts its energy.
"""

import json
import pathlib
import random
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from servers import Server, free_ports, wait_for  # noqa: E402

ROOT = HERE.parents[2]
DASHBOARDS = ["memory", "load", "slo"]
# Of two clients, by their names.
KEYS = {"search": "key-of-search", "batch": "key-of-batch"}
# What only a cluster has, and what only processors have that count their energy.
OFTEN_ABSENT = ("kube_", "container_", "joules")


def client(api, until, seed):
    """Requests of different lengths, with pauses, so that the curves move."""
    chance = random.Random(seed)
    while time.time() < until:
        body = {
            "prompt": [1 + chance.randrange(300) for _ in range(chance.choice([8, 40, 160]))],
            "max_tokens": chance.choice([4, 24, 64]),
            "temperature": 0.8,
            "stream": chance.random() < 0.5,
        }
        headers = {"content-type": "application/json", "authorization": f"Bearer {list(KEYS.values())[seed % len(KEYS)]}"}
        request = urllib.request.Request(f"https://127.0.0.1:{api}/v1/completions", json.dumps(body).encode(), headers)
        # The certificate is nobody's.
        trusting = ssl._create_unverified_context()
        try:
            urllib.request.urlopen(request, timeout=60, context=trusting).read()
        except urllib.error.HTTPError:
            pass  # A full queue is worth a picture, too.
        time.sleep(chance.random() * 0.5)


def query(prometheus, expr, start, end, is_range):
    expr = expr.replace("$__rate_interval", "8s").replace("$namespace", ".*").replace("$job", ".+").replace("$instance", ".+")
    arguments = {"query": expr, **({"start": start, "end": end, "step": 1} if is_range else {"time": end})}
    url = f"http://127.0.0.1:{prometheus}/api/v1/query{'_range' if is_range else ''}?" + urllib.parse.urlencode(arguments)
    with urllib.request.urlopen(url) as answer:
        result = json.load(answer)["data"]["result"]
    return [{"metric": one["metric"], "values": one.get("values") or [one["value"]]} for one in result]


def named(series, legend):
    for label, value in series["metric"].items():
        legend = legend.replace("{{" + label + "}}", value)
    return {**series, "name": legend.replace("{{namespace}} ", "")}


def series_of(panel, prometheus, start, end):
    found = []
    for target in panel["targets"]:
        for one in query(prometheus, target["expr"], start, end, target.get("range", False)):
            found.append(named(one, target["legendFormat"]))
    may_be_absent = all(any(part in target["expr"] for part in OFTEN_ABSENT) for target in panel["targets"])
    if not found and not may_be_absent:
        sys.exit(f"{panel['title']}: no data")
    return found


def main(binary, model, folder, seconds):
    children = []
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        try:
            (scratch / "keys").write_text("".join(f"{key} name={name}\n" for name, key in KEYS.items()))
            certificate = ["--tls-cert", scratch / "tls.crt", "--tls-key", scratch / "tls.key"]
            make = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "30", "-subj", "/CN=localhost"]
            subprocess.run([*make, "-out", certificate[1], "-keyout", certificate[3]], check=True, stderr=subprocess.DEVNULL)
            flags = ["--served-model-name", "granite", "--max-batch", "8", "--max-queue", "16", "--api-key-file", scratch / "keys"]
            server = Server(binary, model, *flags, *certificate)
            children.append(server.process)
            (scratch / "prometheus.yml").write_text(
                "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
                f"rule_files: ['{ROOT}/deploy/prometheus/microgranite.yaml']\n"
                f"scrape_configs: [{{job_name: microgranite, static_configs: [{{targets: ['127.0.0.1:{server.admin}']}}]}}]\n"
            )
            (web,) = free_ports(1)
            watch = ["prometheus", f"--config.file={scratch}/prometheus.yml", f"--storage.tsdb.path={scratch}/data"]
            children.append(subprocess.Popen([*watch, f"--web.listen-address=127.0.0.1:{web}", "--log.level=error"]))
            wait_for(f"http://127.0.0.1:{web}/-/ready", children[-1])
            start = time.time()
            threads = [threading.Thread(target=client, args=(server.port, start + seconds, n)) for n in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            time.sleep(2)
            end = time.time()
            for name in DASHBOARDS:
                dashboard = json.loads((ROOT / f"deploy/grafana/{name}.json").read_text())
                panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
                data = {
                    "dashboard": dashboard,
                    "series": {panel["id"]: series_of(panel, web, start, end) for panel in panels},
                    "about": f"Drawn by tests/deploy/preview over {seconds} s of real load on a small model. Not Grafana's own drawing.",
                    "from": start,
                    "to": end,
                }
                page = (HERE / "page.html").read_text().replace("/*DATA*/", json.dumps(data).replace("</", "<\\/"))
                (scratch / "page.html").write_text(page)
                height = 70 + 30 * max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
                shot = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=0.8", f"--user-data-dir={scratch}/browser"]
                shot += [f"--window-size=1400,{height}", f"--screenshot={folder}/{name}.png", f"file://{scratch}/page.html"]
                subprocess.run(shot, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
                print(f"{folder}/{name}.png: {(folder / f'{name}.png').stat().st_size} bytes, {len(panels)} panels")
        finally:
            for child in children:
                child.kill()


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]).resolve(), sys.argv[2], pathlib.Path(sys.argv[3]).resolve(), int(sys.argv[4]) if len(sys.argv) > 4 else 90)
