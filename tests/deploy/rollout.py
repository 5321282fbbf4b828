#!/usr/bin/env python3
"""Replaces both replicas behind nginx, one after the other, under load, and counts the requests that fail: none may.

    tests/deploy/rollout.py BINARY [REQUESTS]

A replica is replaced as a Deployment does it: the new one is ready before the old one leaves the list of servers; the old one sleeps as
`preStop` does, while the proxy notices; then it gets SIGTERM, and must exit with 0. The proxy sends nothing again, so every failure
counts. Replicas are replaced until REQUESTS (2000) have been answered, twice each at least. Needs nginx.
"""

import collections
import http.client
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

from servers import Server, free_ports, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "tests/fixtures/granite-3-tiny"
CLIENTS = 6
# As long as the chart's default takes on a machine whose proxies notice a change within a second.
PRE_STOP_SECONDS = 2
NOTICE_SECONDS = 1
CONFIGURATION = """
daemon off;
error_log stderr error;
pid {folder}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream microgranite {{
        {servers}
        # Connections to the replicas are used again, also in the moment in which a replica ends.
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://microgranite;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_next_upstream off;
        }}
    }}
}}
"""


class Replica(Server):
    def __init__(self, binary):
        super().__init__(binary, MODEL, "--threads", "1", "--kv-cache", "16MiB", "--drain-timeout", "30")

    def stop(self):
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Proxy:
    def __init__(self, folder, replicas):
        self.folder, (self.port,) = folder, free_ports(1)
        self.file = folder / "nginx.conf"
        self.write(replicas)
        self.process = subprocess.Popen(["nginx", "-p", folder, "-c", self.file, "-e", "stderr"])

    def write(self, replicas):
        servers = "\n        ".join(f"server 127.0.0.1:{replica.port} max_fails=0;" for replica in replicas)
        self.file.write_text(CONFIGURATION.format(folder=self.folder, servers=servers, port=self.port))

    def use(self, replicas):
        self.write(replicas)
        self.process.send_signal(signal.SIGHUP)


class Load:
    """Clients that send one request after the other, half of them as streams."""

    def __init__(self, port):
        self.port, self.is_over = port, threading.Event()
        self.outcomes = collections.Counter()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.client, args=(n,)) for n in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def client(self, seed):
        number = 0
        while not self.is_over.is_set():
            number += 1
            try:
                outcome = self.request(seed * 1_000_000 + number, stream=number % 2 == 0)
            except (OSError, http.client.HTTPException, ValueError) as problem:
                outcome = f"{type(problem).__name__}: {problem}"
            with self.lock:
                self.outcomes[outcome] += 1

    def request(self, seed, stream):
        body = {"prompt": [1 + (seed + i) % 300 for i in range(12)], "max_tokens": 8, "seed": seed, "stream": stream}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"content-type": "application/json", "connection": "close"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        if response.status != 200:
            return f"status {response.status}: {text[:200]}"
        if stream:
            return "ok" if text.rstrip().endswith("data: [DONE]") else "an incomplete stream"
        return "ok" if json.loads(text)["usage"]["completion_tokens"] > 0 else "an empty answer"

    def total(self):
        with self.lock:
            return self.outcomes.total()

    def end(self):
        self.is_over.set()
        for thread in self.threads:
            thread.join()


def main(binary, wanted):
    codes = []
    with tempfile.TemporaryDirectory() as folder:
        replicas = [Replica(binary), Replica(binary)]
        proxy = Proxy(pathlib.Path(folder), replicas)
        load = None
        try:
            wait_for(f"http://127.0.0.1:{proxy.port}/readyz", proxy.process)
            load, started = Load(proxy.port), time.monotonic()
            while len(codes) < 4 or load.total() < wanted:
                new = Replica(binary)
                proxy.use([*replicas, new])
                old = replicas.pop(0)
                replicas.append(new)
                # The pod ends from here on. The proxy notices a little later, and meanwhile the pod only sleeps.
                time.sleep(NOTICE_SECONDS)
                proxy.use(replicas)
                time.sleep(PRE_STOP_SECONDS - NOTICE_SECONDS)
                codes.append(old.stop())
            took = time.monotonic() - started
        finally:
            if load:
                load.end()
            proxy.process.terminate()
            for replica in replicas:
                replica.process.kill()
    failed = {outcome: count for outcome, count in load.outcomes.items() if outcome != "ok"}
    print(f"{load.total()} requests in {took:.0f} s, {sum(failed.values())} failed; {len(codes)} replicas replaced, exit codes {codes}")
    for outcome, count in failed.items():
        print(f"{count} times {outcome}")
    return 1 if failed or any(codes) else 0


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(pathlib.Path(sys.argv[1]).resolve(), int(sys.argv[2]) if len(sys.argv) > 2 else 2000))
