"""The compared engines, each with the same interface: start, complete, stop."""

import http.client
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import process

HERE = Path(__file__).parent


class Transformers:
    """PyTorch's arithmetic through `worker.py`."""

    def __init__(self, engine, folder, threads):
        self.command = [sys.executable, HERE / "worker.py", engine, folder, str(threads)]

    def start(self):
        """Returns the seconds from start to ready, those of loading alone, and the memory that the engine reports."""
        begun = time.perf_counter()
        self.child = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self.child.pid
        self.hear()
        before = process.memory(self.pid)
        imported = time.perf_counter()
        self.say("load")
        footprint = self.hear()["footprint"]
        ready = time.perf_counter()
        return {
            "start_s": ready - begun,
            "load_s": ready - imported,
            "footprint": footprint,
            "before_loading": before,
        }

    def complete(self, prompt, tokens):
        self.say(json.dumps({"prompt": prompt, "tokens": tokens}))
        return self.hear()["ids"]

    def stop(self):
        self.child.stdin.close()
        if self.child.wait() != 0:
            raise RuntimeError(f"{self.command} ended with {self.child.returncode}")

    def say(self, line):
        print(line, file=self.child.stdin, flush=True)

    def hear(self):
        line = self.child.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.command} ended with {self.child.wait()}")
        return json.loads(line)


class Microgranite:
    """The server, over HTTP. Speculation and the prefix cache are off, so that only arithmetic is compared."""

    def __init__(self, binary, folder, threads):
        plain = ["--speculation", "0", "--prefix-cache", "off", "--threads", str(threads)]
        self.command = [binary, "serve", "--model", folder, "--listen", "127.0.0.1:0", "--log", "warn", *plain]

    def start(self):
        begun = time.perf_counter()
        self.child = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        self.pid = self.child.pid
        for line in self.child.stdout:
            if found := re.search(r" is ready on http://(\S+)$", line):
                break
        else:
            raise RuntimeError(f"{self.command} ended with {self.child.wait()}")
        seconds = time.perf_counter() - begun
        self.connection = http.client.HTTPConnection(found[1])
        [model] = self.ask("GET", "/v1/models")["data"]
        return {"start_s": seconds, "load_s": seconds, "footprint": model["quantization"]["weight_bytes"]}

    def complete(self, prompt, tokens):
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        return self.ask("POST", "/v1/completions", body)["choices"][0]["token_ids"]

    def stop(self):
        self.child.terminate()
        if self.child.wait() != 0:
            raise RuntimeError(f"{self.command} ended with {self.child.returncode}")

    def ask(self, method, path, body=None):
        headers = {"content-type": "application/json"}
        self.connection.request(method, path, body and json.dumps(body), headers)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        if answer.status != 200:
            raise RuntimeError(f"{method} {path}: {answer.status} {text}")
        return json.loads(text)


def all_of(binary, folders, threads):
    """The engines by name, in display order; `folders` is where `run.sh` put the checkpoints."""
    return {
        "f32": Transformers("f32", folders / "bf16", threads),
        "bf16": Transformers("bf16", folders / "bf16", threads),
        "llm-int8": Transformers("llm-int8", folders / "llm-int8", threads),
        "microgranite": Microgranite(binary, folders / "microgranite", threads),
    }
