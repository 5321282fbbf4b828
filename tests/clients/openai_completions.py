"""The `openai` package on /v1/completions: sync, async, streams, errors, and retries when the queue is full."""

import asyncio
import os
import threading

import openai

URL = os.environ["MICROGRANITE_URL"] + "/v1"
SMALL_URL = os.environ["MICROGRANITE_SMALL_URL"] + "/v1"
ASK = dict(model="demo", prompt="The capital of France is", max_tokens=8, temperature=0)
client = openai.OpenAI(base_url=URL, max_retries=0)

# One answer, with all fields that the package's types require.
answer = client.completions.create(**ASK, logprobs=2, echo=True)
choice = answer.choices[0]
assert answer.id.startswith("cmpl-") and answer.object == "text_completion" and answer._request_id
assert "Paris" in choice.text and choice.text.startswith(ASK["prompt"]), choice.text
assert choice.finish_reason == "length"
assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
assert answer.usage.prompt_tokens_details.cached_tokens is not None
logprobs = choice.logprobs
assert logprobs.token_logprobs[0] is None and "".join(logprobs.tokens) == choice.text
for offset, token in zip(logprobs.text_offset, logprobs.tokens):
    assert choice.text[offset : offset + len(token)] == token
for token, logprob, top in list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs))[-8:]:
    assert top[token] == logprob == max(top.values()), "greedy"

# The pieces of a stream add up to the whole answer; several prompts, several answers.
several = dict(model="demo", prompt=["One,", "Two,"], n=2, seed=7, max_tokens=12, stop=["\n"], presence_penalty=0.5,
               frequency_penalty=0.2, logit_bias={"0": -100}, user="someone")
whole = client.completions.create(**several)
texts, usage = [""] * 4, None
for event in client.completions.create(**several, stream=True, stream_options={"include_usage": True}):
    for piece in event.choices:
        texts[piece.index] += piece.text
    usage = event.usage or usage
assert texts == [choice.text for choice in whole.choices], (texts, whole)
assert usage == whole.usage, (usage, whole.usage)
assert client.completions.create(**several, best_of=3).usage.completion_tokens >= whole.usage.completion_tokens

# JSON by a schema.
schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}}, "required": ["name"],
          "additionalProperties": False}
body = {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}}
text = client.completions.create(model="demo", prompt="A person:", max_tokens=64, extra_body=body).choices[0].text
assert text.startswith('{"name": "') and text.endswith('"}'), text

# Each error has the right class of the package, and names the field.
for change, error, param in [
    ({"temperature": 9}, openai.BadRequestError, "temperature"),
    ({"max_tokens": 10**9}, openai.BadRequestError, "max_tokens"),
    ({"model": "gpt-4"}, openai.NotFoundError, "model"),
]:
    try:
        client.completions.create(**{**ASK, **change})
    except error as caught:
        assert caught.param == param and isinstance(caught.code, str), caught
    else:
        raise AssertionError(f"accepted: {change}")


# Many at once: each gets the same answer as alone.
async def many():
    async with openai.AsyncOpenAI(base_url=URL, max_retries=0) as asynchronous:
        prompts = ["The sky is", "Water boils at", "Seven times eight is", "Once upon a time"] * 3
        ask = lambda prompt: asynchronous.completions.create(model="demo", prompt=prompt, max_tokens=8, temperature=0, logprobs=0)
        answers = await asyncio.gather(*map(ask, prompts))
        for prompt, answer in zip(prompts[:4], answers):
            alone = client.completions.create(model="demo", prompt=prompt, max_tokens=8, temperature=0, logprobs=0)
            assert answer.choices == alone.choices
        stream = await asynchronous.completions.create(**ASK, stream=True)
        text = "".join([event.choices[0].text async for event in stream])
        assert text == client.completions.create(**ASK).choices[0].text


asyncio.run(many())

# A full queue: a client without retries gets a Retry-After, a client with retries gets an answer.
outcomes = []


def ask(retries):
    small = openai.OpenAI(base_url=SMALL_URL, max_retries=retries)
    try:
        small.completions.create(model="demo", prompt="Tell me", max_tokens=60, extra_body={"ignore_eos": True})
        outcomes.append("answered")
    except openai.RateLimitError as error:
        assert int(error.response.headers["retry-after"]) >= 1 and error.code == "queue_full"
        outcomes.append("refused")


for retries, count, expected in [(0, 6, {"answered", "refused"}), (20, 4, {"answered"})]:
    outcomes.clear()
    threads = [threading.Thread(target=ask, args=(retries,)) for _ in range(count)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(outcomes) == count and set(outcomes) == expected, outcomes
print("openai", openai.__version__, "is content")
