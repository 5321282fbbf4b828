#!/usr/bin/env python3
"""Measures the latencies that clients of a running server see. Needs only Python.

    load.py URL clients [--clients 16 --rounds 3 --prompt 128 --tokens 32]
        streaming clients in a closed loop, each with prompts of its own: tokens per second, first token, time per token
    load.py URL beside [--prompt 2048]
        the gaps of one stream while a long prompt comes in, as multiples of its gaps before
    load.py URL quote [--tokens 128]
        an answer that quotes its prompt: time per token, and the answer's SHA-256 (serve with --speculation 0, then 16)

Prompts are random ids, the same in every run with the same --seed. Prints one line of JSON.
"""

import argparse
import asyncio
import hashlib
import json
import random
import statistics
import time
import urllib.request
from urllib.parse import urlparse

DOCUMENT = """The harbour of Lindau lies on the eastern shore of the lake. In 1856 the town built a lighthouse at the end of \
the western pier, thirty three metres high, and opposite to it a stone lion that looks out over the water. Fishing boats leave \
before dawn and return at noon with perch and whitefish. On clear days the snow of the Alps can be seen from the market square, \
where farmers sell apples, cheese and rye bread. The railway came across a dam in 1853 and made the island a stop for travellers \
on their way to Italy. Today ferries cross to Bregenz, Rorschach and Konstanz eight times a day."""


class Server:
    def __init__(self, url: str, seed: int) -> None:
        self.address = urlparse(url)
        with urllib.request.urlopen(url.rstrip("/") + "/v1/models") as answer:
            model = json.load(answer)["data"][0]
        self.model, self.context = model["id"], model["max_model_len"]
        self.random = random.Random(seed)

    def ids(self, count: int) -> list[int]:
        return [self.random.randrange(100, 49_000) for _ in range(count)]

    async def stream(self, prompt, tokens: int, arrivals: list[float], temperature: float = 0) -> str:
        """Generates `tokens` tokens; notes when each piece arrives. A connection of its own for each request."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": temperature, "ignore_eos": True}
        body = json.dumps(body | {"stream": True, "stream_options": {"include_usage": True}}).encode()
        reader, writer = await asyncio.open_connection(self.address.hostname, self.address.port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {self.address.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        text, usage = "", None
        while line := await reader.readline():
            if line.startswith(b"HTTP/1.1") and b" 200 " not in line:
                raise SystemExit((line + await reader.read()).decode())
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                usage = event.get("usage") or usage
                if event["choices"]:
                    arrivals.append(time.perf_counter())
                    text += event["choices"][0]["text"]
        writer.close()
        if not usage or usage["completion_tokens"] != tokens:
            raise SystemExit(f"an answer of other than {tokens} tokens: {usage}")
        return text


async def clients(server: Server, options) -> dict:
    first, each = [], []

    async def client(prompts) -> None:
        for prompt in prompts:
            arrivals, sent = [], time.perf_counter()
            await server.stream(prompt, options.tokens, arrivals)
            first.append(arrivals[0] - sent)
            each.append((arrivals[-1] - arrivals[0]) / (options.tokens - 1))

    prompts = [[server.ids(options.prompt) for _ in range(options.rounds)] for _ in range(options.clients)]
    began = time.perf_counter()
    await asyncio.gather(*map(client, prompts))
    seconds = time.perf_counter() - began
    return {
        "clients": options.clients,
        "output_tokens_per_second": round(len(first) * options.tokens / seconds, 1),
        "first_token_seconds": {"median": round(statistics.median(first), 2), "most": round(max(first), 2)},
        "milliseconds_per_token": round(1e3 * statistics.median(each), 1),
    }


def steps(arrivals: list[float]) -> list[float]:
    """The first arrival of each step: with speculation, a step can bring several tokens at once."""
    at_once = 2e-4  # Seconds. Pieces of one write are read microseconds apart, and no step is that short.
    return [now for before, now in zip([0.0, *arrivals], arrivals) if now - before > at_once]


async def beside(server: Server, options) -> dict:
    arrivals, other = [], []
    prompt = min(options.prompt, server.context - 1)
    # At this temperature an answer does not repeat itself, so that few drafts are accepted.
    tokens = min(4_000, server.context - 64)
    stream = asyncio.create_task(server.stream(server.ids(64), tokens, arrivals, temperature=1))
    while len(arrivals) < 60 and not stream.done():
        await asyncio.sleep(0.01)
    sent = time.perf_counter()
    await server.stream(server.ids(prompt), 1, other)
    if stream.done():
        stream.result()
        raise SystemExit(f"the stream of {tokens} tokens ended before the prompt was answered: give it less with --prompt")
    stream.cancel()
    gaps = list(zip(steps(arrivals), steps(arrivals)[1:]))
    normal = statistics.median(b - a for a, b in gaps[5:] if b < sent)
    meanwhile = sorted((b - a) / normal for a, b in gaps if b > sent and a < other[0])
    if not meanwhile:
        raise SystemExit("the prompt was answered between two tokens of the stream: give it more with --prompt")
    return {
        "prompt": prompt,
        "normal_milliseconds": round(1e3 * normal, 1),
        "first_token_seconds": round(other[0] - sent, 2),
        "gaps": len(meanwhile),
        "median": round(statistics.median(meanwhile), 2),
        "second": round(meanwhile[max(0, len(meanwhile) - 2)], 2),
        "worst": round(meanwhile[-1], 2),
    }


async def quote(server: Server, options) -> dict:
    prompt = f"Document:\n{DOCUMENT}\n\nThe whole document quoted word for word:\n{DOCUMENT[:60]}"
    times, texts = [], set()
    for _ in range(1 + options.rounds):
        arrivals = []
        texts.add(await server.stream(prompt, options.tokens, arrivals))
        times.append((arrivals[-1] - arrivals[0]) / (options.tokens - 1))
    answers = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    return {"milliseconds_per_token": round(1e3 * statistics.median(times[1:]), 2), "answers": answers}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("what", choices=["clients", "beside", "quote"])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.prompt = options.prompt or {"clients": 128, "beside": 2048}.get(options.what)
    options.tokens = options.tokens or {"clients": 32, "quote": 128}.get(options.what)
    measure = {"clients": clients, "beside": beside, "quote": quote}[options.what]
    print(json.dumps(asyncio.run(measure(Server(options.url, options.seed), options))))


if __name__ == "__main__":
    main()
