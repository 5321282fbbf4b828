#!/usr/bin/env python3
"""How servers behave when clients do not: the same questions to microgranite and to llama.cpp's server. Needs only Python.

    compare/reliability.py BINARY MODEL.gguf [--seconds 20]

BINARY is `microgranite` or `llama-server`. Starts it with four places and room for 16 that wait, where it has such a limit,
and prints a line of JSON: seconds from the start to ready; bytes and first token beside idle connections; capacity, and
at ten times that the first token of accepted requests, refusals and failures; the time from a client's leaving to a free
place; bad requests that were answered with a server error or not at all; and answers lost on SIGTERM.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import time

import process

PLACES, WAITING, IDLE = 4, 16, 200
WORDS = "the of and to in is that it was for on are as with his they at be this from".split()


class Server:
    def __init__(self, binary, model):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.is_ours = "llama" not in os.path.basename(binary)
        if self.is_ours:
            flags = ["serve", model, "--listen", f"127.0.0.1:{self.port}", "--log", "error", "--max-connections", "4096"]
            flags += ["--max-batch", str(PLACES), "--max-queue", str(WAITING)]
        else:
            flags = ["-m", model, "--port", str(self.port), "--parallel", str(PLACES), "-c", "16384", "--slots", "--log-disable"]
            flags += ["--no-webui"]
        self.command = [binary, *flags]

    async def start(self):
        begun = time.perf_counter()
        self.child = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while await self.status("/health") != 200:
            if self.child.poll() is not None:
                raise SystemExit(f"{self.command} ended with {self.child.returncode}")
            await asyncio.sleep(0.01)
        return time.perf_counter() - begun

    async def open(self, method, path, body=b"", close=True):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)
        kind = "Connection: close\r\n" if close else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        return reader, writer

    async def status(self, path, method="GET", body=b"", patience=60):
        """The status of a complete answer; 0 if there is none."""
        try:
            reader, writer = await self.open(method, path, body)
            answer = await asyncio.wait_for(reader.read(), patience)
            writer.close()
            return int(answer.split(b" ", 2)[1])
        except (OSError, IndexError, ValueError, asyncio.TimeoutError):
            return 0

    async def stream(self, tokens):
        """A streamed completion: (first token in seconds, whether it was whole, status)."""
        sent, first, rest = time.perf_counter(), None, b""
        prompt = " ".join(random.choices(WORDS, k=24))
        body = {"prompt": prompt, "max_tokens": tokens, "stream": True, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
        try:
            reader, writer = await self.open("POST", "/v1/completions", json.dumps(body).encode())
            status = int((await asyncio.wait_for(reader.readline(), 120)).split(b" ")[1])
            while line := await asyncio.wait_for(reader.readline(), 120):
                if line.startswith(b"data: {") and first is None:
                    first = time.perf_counter() - sent
                rest = line if line.startswith(b"data: ") else rest
            writer.close()
            return first, rest.startswith(b"data: [DONE]"), status
        except (OSError, IndexError, ValueError, asyncio.TimeoutError):
            return first, False, 0

    async def busy(self):
        """Places in use."""
        if self.is_ours:
            reader, _ = await self.open("GET", "/metrics")
            return int(re.search(rb"_requests_running (\d+)", await reader.read())[1])
        reader, _ = await self.open("GET", "/slots")
        answer = await reader.read()
        return answer.count(b'"is_processing":true')


def percentile(values, share):
    values = sorted(values)
    return round(values[min(len(values) - 1, int(share * len(values)))], 3) if values else None


async def overload(server, seconds):
    alone = [(await server.stream(64))[0] for _ in range(5)]
    done = 0

    async def client(end):
        nonlocal done
        while time.perf_counter() < end:
            done += (await server.stream(64))[1]

    begun = time.perf_counter()
    await asyncio.gather(*(client(begun + seconds / 2) for _ in range(2 * PLACES)))
    capacity = done / (time.perf_counter() - begun)
    tasks, begun = [], time.perf_counter()
    while time.perf_counter() < begun + seconds:
        tasks.append(asyncio.create_task(server.stream(64)))
        await asyncio.sleep(random.expovariate(10 * capacity))
    answers = await asyncio.gather(*tasks)
    return {
        "capacity_per_second": round(capacity, 2),
        "first_token_alone_s": percentile(alone, 0.5),
        "sent": len(answers),
        "accepted": sum(whole for _, whole, _ in answers),
        "refused": sum(status in (429, 503) for _, _, status in answers),
        "failed": sum(not whole and status not in (429, 503) for _, whole, status in answers),
        "first_token_p99_s": percentile([first for first, whole, _ in answers if whole and first], 0.99),
        "seconds_until_all_are_answered": round(time.perf_counter() - begun, 1),
    }


async def idle(server):
    before, held = process.memory(server.child.pid)["anonymous"], []
    for _ in range(IDLE):
        reader, writer = await server.open("GET", "/health", close=False)
        try:
            await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 2)
        except (asyncio.TimeoutError, asyncio.IncompleteReadError, OSError):
            break
        held.append((reader, writer))
    grown = process.memory(server.child.pid)["anonymous"] - before
    probe = time.perf_counter()
    answered = await server.status("/health", patience=5) == 200
    probe = time.perf_counter() - probe
    for _, writer in held:
        writer.close()
    return {"held": len(held), "bytes_each": grown // max(1, len(held)), "probe_s": round(probe, 3) if answered else None}


async def cancel(server, times=20):
    taken = []
    for _ in range(times):
        body = json.dumps({"prompt": "Once", "max_tokens": 4000, "stream": True, "ignore_eos": True}).encode()
        reader, writer = await server.open("POST", "/v1/completions", body)
        while not (await reader.readline()).startswith(b"data: "):
            pass
        writer.transport.abort()
        left = time.perf_counter()
        while await server.busy():
            await asyncio.sleep(0.002)
        taken.append(time.perf_counter() - left)
    return {"median_s": round(statistics.median(taken), 3), "p99_s": percentile(taken, 0.99)}


def bad_bodies():
    yield from [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"prompt": ' + b"[" * 10_000, b'{"prompt": NaN}', b"{}" * 1000, b"\0" * 100]
    good = {"prompt": "a", "max_tokens": 2}
    values = [-1, 0, 2**63, -(2**63), 1e308, "x", None, [], {}, [[]], True, "\0", [None], {"a": 1}]
    for field in ["prompt", "max_tokens", "n", "temperature", "top_p", "top_k", "stop", "logit_bias", "logprobs", "seed", "stream", "grammar", "json_schema"]:
        for value in values:
            yield json.dumps(good | {field: value}).encode()
    for field, value in [
        ("grammar", "root ::= root"), ("grammar", "start: " + "(" * 5000), ("json_schema", {"$ref": "#"}), ("json_schema", {"allOf": [{"$ref": "#"}]}),
        ("json_schema", {"type": "string", "pattern": "(a?){5000}a{5000}"}), ("json_schema", {"type": "array", "minItems": 10**9}),
        ("prompt", [2**31]), ("prompt", [-5]), ("logit_bias", {"x": 1}), ("logit_bias", [[10**9, 1]]), ("stop", ["a"] * 10_000),
    ]:
        yield json.dumps(good | {field: value}).encode()


async def bad(server):
    statuses = []
    for body in bad_bodies():
        statuses.append(await server.status("/v1/completions", "POST", body, 30))
        if server.child.poll() is not None:
            return {"sent": len(statuses), "ended_with": server.child.returncode, "body": body[:80].decode(errors="replace")}
    server_errors = sum(status >= 500 for status in statuses)
    return {"sent": len(statuses), "server_errors": server_errors, "unanswered": statuses.count(0)}


async def stop(server):
    streams = [asyncio.create_task(server.stream(200)) for _ in range(2 * PLACES)]
    while await server.busy() < PLACES:
        await asyncio.sleep(0.01)
    server.child.send_signal(signal.SIGTERM)
    sent = time.perf_counter()
    answers = await asyncio.gather(*streams)
    code = await asyncio.to_thread(server.child.wait)
    return {"in_flight": len(answers), "lost": sum(not whole for _, whole, _ in answers), "exit_code": code, "exit_s": round(time.perf_counter() - sent, 1)}


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    random.seed(1)
    server = Server(options.binary, options.model)
    found, busy, begun = {"server": os.path.basename(options.binary)}, process.busy_seconds(), time.perf_counter()
    try:
        found["ready_s"] = round(await server.start(), 2)
        found["cancel"] = await cancel(server)
        found["overload"] = await overload(server, options.seconds)
        found["idle"] = await idle(server)
        found["stop"] = await stop(server)
        await server.start()
        found["bad"] = await bad(server)
    finally:
        server.child.kill()
    found["busy_cores"] = round((process.busy_seconds() - busy) / (time.perf_counter() - begun), 2)
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main())
