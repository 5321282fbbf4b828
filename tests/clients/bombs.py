#!/usr/bin/env python3
"""Measures how eight attacking clients affect an honest client of a running server. Needs only Python.

    bombs.py URL [--bombers 8 --seconds 20]
        the 99th percentile of an honest client's answers alone and under attack, their ratio, and what probes waited;
        `noise` is the ratio of what it was after the attack to what it was before

The attackers send, in turn: schemas and grammars that refer to each other in long chains, regular expressions that take
long to compile, heavy grammars that are allowed, bodies that never end, bodies full of numbers, and streams that nobody
reads. Prints a line of JSON. Fails if a request of the honest client or a probe is refused.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import statistics
import sys
import time
from urllib.parse import urlparse


def chained_schema(keyword, links=600):
    def link(target):
        if keyword == "$ref":
            return target
        if keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
            return {keyword: [target]}
        if keyword == "properties":
            return {"properties": {"a": target}, "required": ["a"]}
        return {keyword: target}

    definitions = {f"d{at}": link({"$ref": f"#/$defs/d{at + 1}"}) for at in range(links)}
    definitions[f"d{links}"] = {"type": "integer"}
    return {"$ref": "#/$defs/d0", "$defs": definitions}


def bombs():
    """Bodies for /v1/completions."""
    fields = []
    for keyword in ["$ref", "allOf", "anyOf", "oneOf", "items", "prefixItems", "properties", "additionalProperties"]:
        fields.append({"json": chained_schema(keyword)})
    rules = "".join(f"r{at}: r{at + 1}\n" for at in range(2000))
    terminals = "".join(f"T{at}: T{at + 1}\n" for at in range(2000))
    fields += [
        {"grammar": f"start: r0\n{rules}r2000: \"x\"\n"},
        {"grammar": f"start: T0\n{terminals}T2000: \"x\"\n"},
        {"regex": "a?" * 30_000},
        {"regex": "a?b*" * 20_000},
        {"regex": "(a|b)*" * 16_000},
        {"regex": "((a{100}){100}){100}"},
        {"json": {"type": "object", "properties": {f"p{at}": {"enum": [f"word{at}x{n}" for n in range(60)]} for at in range(50)}}},
        {"grammar": "start: s\ns: s \"a\" | s s \"b\" | \"c\"\n"},
        {"grammar": "start: %json " + json.dumps(chained_schema("items")) + "\n"},
    ]
    return [json.dumps({"prompt": [300], "max_tokens": 2, "structured_outputs": field}).encode() for field in fields]


class Client:
    def __init__(self, url):
        self.address = urlparse(url)

    async def open(self):
        return await asyncio.open_connection(self.address.hostname, self.address.port, limit=1 << 24)

    def head(self, method, path, length):
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self.address.netloc}\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {length}\r\n\r\n"
        ).encode()

    async def ask(self, method, path, body=b""):
        """Reads the whole response and returns its status."""
        reader, writer = await self.open()
        try:
            writer.write(self.head(method, path, len(body)) + body)
            await writer.drain()
            answer = await reader.read()
            return int(answer.split(b" ", 2)[1])
        finally:
            writer.close()


async def bomb(client, choice, bodies, numbers, counts, until):
    while time.perf_counter() < until:
        kind = choice.randrange(8)
        try:
            if kind == 0:
                # A body without an end.
                reader, writer = await client.open()
                writer.write(client.head("POST", "/v1/completions", 1 << 20) + b" " * (1 << 19))
                await asyncio.sleep(2)
                writer.close()
            elif kind == 1:
                # A stream that is never read.
                reader, writer = await client.open()
                reader._transport.pause_reading()
                body = json.dumps({"prompt": [300], "max_tokens": 16, "stream": True, "ignore_eos": True}).encode()
                writer.write(client.head("POST", "/v1/completions", len(body)) + body)
                await asyncio.sleep(2)
                writer.close()
            elif kind == 2:
                await asyncio.wait_for(client.ask("POST", "/v1/completions", numbers), 5)
            else:
                body = choice.choice(bodies)
                # Half of them disconnect before the response.
                patience = 0.2 if choice.random() < 0.5 else 10
                await asyncio.wait_for(client.ask("POST", "/v1/completions", body), patience)
            counts["bombs"] += 1
        except (asyncio.TimeoutError, OSError, IndexError, ValueError):
            counts["bombs"] += 1


def attack(url, bombers, seconds, ready, results):
    """Attacks from its own process, because making a large body blocks Python's event loop.

    It says when it is `ready`: starting Python and making the bodies takes a core for a third of a second, which would
    count as harm that the attack did where the clients share the server's cores.
    """

    async def all_of_them():
        counts, bodies = {"bombs": 0}, bombs()
        numbers = json.dumps({"prompt": [1] * 300_000, "max_tokens": 1}).encode()
        ready.set()
        until = time.perf_counter() + seconds
        work = [bomb(Client(url), random.Random(seed), bodies, numbers, counts, until) for seed in range(bombers)]
        await asyncio.gather(*work)
        return counts["bombs"]

    results.put(asyncio.run(all_of_them()))


async def honest(client, counts, until):
    body = json.dumps({"prompt": list(range(300, 316)), "max_tokens": 8, "temperature": 0, "ignore_eos": True}).encode()
    times = []
    while time.perf_counter() < until:
        began = time.perf_counter()
        status = await client.ask("POST", "/v1/completions", body)
        times.append(time.perf_counter() - began)
        counts["honest_failures"] += status != 200
        await asyncio.sleep(0.02)
    return times


async def probe(client, counts, until):
    times = []
    while time.perf_counter() < until:
        began = time.perf_counter()
        status = await client.ask("GET", "/livez")
        times.append(time.perf_counter() - began)
        counts["probe_failures"] += status != 200
        await asyncio.sleep(0.1)
    return times


def p99(times):
    return statistics.quantiles(times, n=100)[98] if len(times) > 1 else times[0]


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--bombers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    client, counts = Client(arguments.url), {"honest_failures": 0, "probe_failures": 0}
    before = await honest(client, counts, time.perf_counter() + arguments.seconds / 2)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Event(), context.Queue()
    attackers = context.Process(target=attack, args=(arguments.url, arguments.bombers, arguments.seconds, ready, results))
    attackers.start()
    if not ready.wait(60):
        sys.exit("the attackers did not start within a minute")
    until = time.perf_counter() + arguments.seconds
    attacked, probes = await asyncio.gather(honest(client, counts, until), probe(client, counts, until))
    counts["bombs"] = results.get()
    attackers.join()
    after = await honest(client, counts, time.perf_counter() + arguments.seconds / 2)
    alone = before + after
    print(
        json.dumps(
            counts
            | {
                "honest": len(attacked),
                "alone_p99_ms": round(1000 * p99(alone), 1),
                "attacked_p99_ms": round(1000 * p99(attacked), 1),
                "ratio": round(p99(attacked) / p99(alone), 2),
                "noise": round(p99(after) / p99(before), 2),
                "probe_p99_ms": round(1000 * p99(probes), 1),
            }
        )
    )
    if counts["honest_failures"] or counts["probe_failures"]:
        sys.exit("the honest client or a probe was refused")


if __name__ == "__main__":
    asyncio.run(main())
