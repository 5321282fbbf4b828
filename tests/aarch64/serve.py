#!/usr/bin/env python3
"""Serves small models with the program for ARM under an emulator, and compares its answers with this machine's.

    tests/aarch64/serve.py [--no-packing] NATIVE ARM PROCESSOR=INSTRUCTIONS…

NATIVE and ARM are the program for this machine and for ARM, which the kernel must be able to start (`run.sh binfmt`). Of each
model every server gets the same requests: greedy, sampled and with penalties, with ids and log-probabilities. Answers must
be equal but for the last digit of a log-probability, whose logarithm is the C library's. Both programs also pack each
model, unless told not to: the weights must be the same bytes. Needs Python alone.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
# Attention alone; Mamba-2 and experts; thoughts, calls and an untied head.
MODELS = ["granite-3-tiny", "granite-4-hybrid-moe-tiny", "granite-4.2-tiny"]
PROMPT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4
REQUESTS = {
    "greedy": {"temperature": 0, "logprobs": 5},
    "sampled": {"temperature": 1, "top_p": 0.9, "seed": 7, "logprobs": 5},
    "penalised": {"temperature": 0, "presence_penalty": 1.5, "logit_bias": {"100": 2}},
}
# No grammar: it is tried in a process of its own that gets two seconds, and an emulator alone may take longer to start.
# Emulated, a start takes seconds on an idle machine.
PATIENCE = 300


def ask(address: str, path: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}{path}", data, {"content-type": "application/json"})
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # A step that takes many seconds counts as stalled; on a busy machine emulated ones do.
            if error.code != 503 or time.monotonic() > deadline:
                sys.exit(f"{path}: {error.code} {error.read().decode()}")
            time.sleep(1)


class Server:
    def __init__(self, program: str, model: pathlib.Path, processor: str | None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = "127.0.0.1:{}".format(free.getsockname()[1])
        environment = os.environ | ({"QEMU_CPU": processor} if processor else {})
        command = [program, "--log", "warn", "serve", model, "--listen", self.address, "--kv-cache", "16MiB", "--threads", "2"]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                ask(self.address, "/v1/models/" + model.name)
                return
            except urllib.error.URLError:  # Nobody listens yet.
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                self.log.seek(0)
                sys.exit(f"{program} on {processor} does not serve {model}:\n{self.log.read()}")
            time.sleep(0.1)

    def answers(self) -> dict:
        """All requests at once, so that they share steps."""
        with concurrent.futures.ThreadPoolExecutor() as threads:
            body = {"prompt": PROMPT, "max_tokens": 24, "return_token_ids": True}
            waiting = {name: threads.submit(ask, self.address, "/v1/completions", body | more) for name, more in REQUESTS.items()}
            whole = {name: answer.result() for name, answer in waiting.items()}
        # Its last part names the instructions.
        self.kernel = whole["greedy"]["system_fingerprint"].split("-int8-")[1]
        return {name: answer["choices"][0] for name, answer in whole.items()}

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE)


def differences(path: str, found: object, expected: object) -> list:
    """Where two answers differ."""
    if isinstance(found, float) and isinstance(expected, float):
        return [] if abs(found - expected) <= 4e-7 * max(1, abs(expected)) else [f"{path}: {found}, not {expected}"]
    if isinstance(found, dict) and isinstance(expected, dict) and found.keys() == expected.keys():
        return [line for key in found for line in differences(f"{path}.{key}", found[key], expected[key])]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [line for at in range(len(found)) for line in differences(f"{path}[{at}]", found[at], expected[at])]
    return [] if found == expected else [f"{path}: {found!r}, not {expected!r}"]


def packed(program: str, model: pathlib.Path) -> str:
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "--log", "warn", "quantize", model, "--rounding", "nearest", "--output", f"{folder}/packed"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        [weights] = pathlib.Path(folder, "packed").glob("*.safetensors")
        return hashlib.sha256(weights.read_bytes()).hexdigest()


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != "--no-packing"]
    if len(arguments) < 3:
        print(__doc__, file=sys.stderr)
        sys.exit(64)
    native, arm, *pairs = arguments
    failed = 0

    def check(what: str, problems: list) -> None:
        nonlocal failed
        failed += bool(problems)
        print("FAILED " if problems else "ok     ", what, *problems, sep="\n    " if problems else " ", flush=True)

    for name in MODELS:
        model = FIXTURES / name
        server = Server(native, model, None)
        expected = server.answers()
        here = server.kernel
        server.stop()
        for answer in expected.values():
            assert answer["token_ids"], "a model that says nothing shows nothing"
        for pair in pairs:
            processor, instructions = pair.split("=")
            start = time.monotonic()
            server = Server(arm, model, processor)
            found = server.answers()
            kernel = server.kernel
            code = server.stop()
            check(f"{name} on {processor}: it runs {kernel}", [] if kernel == instructions else [f"not {instructions}"])
            for request, answer in found.items():
                ids = answer["token_ids"]
                what = f"{name} on {processor}, {request}: {len(ids)} ids as on {here}, {ids[:6]}…"
                check(what, differences("choice", answer, expected[request]))
            check(f"{name} on {processor}: exit code {code} after SIGTERM, {time.monotonic() - start:.0f} s in all", [] if code == 0 else ["not 0"])
        if "--no-packing" in sys.argv:
            continue
        there, here = packed(arm, model), packed(native, model)
        check(f"{name}, packed: sha256 {there[:16]}…", [] if there == here else [f"not {here[:16]}…"])
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
