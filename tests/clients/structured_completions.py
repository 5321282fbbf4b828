"""Answers at temperature 1, each of which must be what its JSON schema says: 160, or as many as the first argument says.

`structured_completions.py --cost` measures instead what the constraint costs: tokens per second with and without it,
one after the other so that both see the same machine.
"""

import json
import os
import sys
import time
import urllib.request

URL = os.environ["MICROGRANITE_URL"] + "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "né\n"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}


def post(**body):
    request = urllib.request.Request(URL, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def check(text):
    value = json.loads(text)
    assert sorted(value) == ["age", "name", "tags"], text
    assert isinstance(value["name"], str) and len(value["name"]) <= 12, text
    assert isinstance(value["age"], int) and 0 <= value["age"] <= 120, text
    assert len(value["tags"]) <= 2 and set(value["tags"]) <= {"new", "old", "né\n"}, text


def check_many(count):
    texts = []
    for seed in range(0, count, 16):
        n = min(16, count - seed)
        answer = post(prompt="A person as JSON:", n=n, seed=seed, max_tokens=128, response_format=FORMAT)
        for choice in answer["choices"]:
            assert choice["finish_reason"] == "stop", choice
            check(choice["text"])
            texts.append(choice["text"])
    assert len(texts) == count and len(set(texts)) > count / 2
    print(f"{count} of {count} answers are what the schema says")


def cost():
    # A string without an end, so that both generate all of their tokens.
    endless = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    constraint = {"type": "json_schema", "json_schema": {"schema": endless}}
    ban = {"logit_bias": {str(id): -100 for id in quotes()}}

    def rate(n, **more):
        """Tokens per second from the first token on, because the time before it is not decoding."""
        body = {"prompt": "A text as JSON:", "n": n, "seed": 1, "max_tokens": 256, "ignore_eos": True, "stream": True}
        body |= {"stream_options": {"include_usage": True}} | more
        request = urllib.request.Request(URL, json.dumps(body).encode(), {"content-type": "application/json"})
        began = None
        with urllib.request.urlopen(request) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    began = began or time.perf_counter()
                    ended, event = time.perf_counter(), json.loads(line[6:])
        return (event["usage"]["completion_tokens"] - n) / (ended - began)

    for n in [1, 16]:
        rounds = [(rate(n), rate(n, response_format=constraint, **ban)) for _ in range(5)]
        plain, constrained = (sorted(rates)[2] for rates in zip(*rounds))
        print(f"{n:2} streams: {plain:.1f} tokens/s, with a schema {constrained:.1f}: {100 * (1 - constrained / plain):.1f} % less")


def quotes():
    """Ids of tokens that would end the string, found as the last tokens of short answers."""
    schema = {"type": "object", "properties": {"text": {"type": "string", "maxLength": 0}}, "required": ["text"]}
    found = set()
    for seed in range(20):
        format = {"type": "json_schema", "json_schema": {"schema": schema}}
        answer = post(prompt="x", seed=seed, max_tokens=20, response_format=format, return_token_ids=True)
        found.update(answer["choices"][0]["token_ids"][-2:])
    return found


cost() if "--cost" in sys.argv else check_many(int(sys.argv[1]) if len(sys.argv) > 1 else 160)
