"""The `openai` package on /v1/chat/completions: sync, async, streams, tools, JSON, log-probabilities, errors."""

import asyncio
import json
import os
import urllib.request

import openai

client = openai.OpenAI(base_url=os.environ["MICROGRANITE_URL"] + "/v1", max_retries=0)
with_tools = openai.OpenAI(base_url=os.environ["MICROGRANITE_TOOLS_URL"] + "/v1", max_retries=0)
ASK = dict(
    model="demo",
    messages=[
        {"role": "system", "content": "You answer briefly."},
        {"role": "user", "content": [{"type": "text", "text": "What is gravity?"}]},
    ],
    max_completion_tokens=24,
    temperature=0,
)

# One answer, with all fields that the package's types require.
answer = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2)
choice = answer.choices[0]
assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer._request_id
assert choice.message.role == "assistant" and "ravity" in choice.message.content, choice
assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
scored = choice.logprobs.content
assert "".join(token.token for token in scored).startswith(choice.message.content)
for token in scored:
    assert token.logprob == max(top.logprob for top in token.top_logprobs), "greedy"
    assert bytes(token.bytes).decode() == token.token

# The pieces of a stream add up to the whole answer.
events = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
assert events[0].choices[0].delta.role == "assistant"
text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
assert text == choice.message.content, text
assert events[-1].usage == answer.usage and events[-2].choices[0].finish_reason == choice.finish_reason
# The package's helper for streams treats a truncated answer as an error, so this one ends by itself.
short = {**ASK, "stop": ["."], "max_completion_tokens": 200}
with client.chat.completions.stream(**short) as stream:
    assert text.startswith(stream.get_final_completion().choices[0].message.content)


async def side_by_side():
    """The same question many times at once has the same answer."""
    many = openai.AsyncOpenAI(base_url=client.base_url, max_retries=0)
    answers = await asyncio.gather(*[many.chat.completions.create(**ASK) for _ in range(6)])
    assert {answer.choices[0].message.content for answer in answers} == {text}


asyncio.run(side_by_side())

# JSON by a schema, and several answers.
schema = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "sure": {"type": "boolean"}},
    "required": ["city", "sure"],
    "additionalProperties": False,
}
form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
several = client.chat.completions.create(**{**ASK, "temperature": 1}, n=3, seed=1, response_format=form)
for choice in several.choices:
    parsed = json.loads(choice.message.content)
    assert parsed["city"] in ("Paris", "Rome") and isinstance(parsed["sure"], bool)

# Tools: forced, by name and streamed; then the result is sent back.
parameters = {"type": "object", "properties": {"unit": {"enum": ["C", "F"]}}, "required": ["unit"], "additionalProperties": False}
tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("weather", "forecast")]
forced = with_tools.chat.completions.create(**ASK, tools=tools, tool_choice="required")
choice = forced.choices[0]
call = choice.message.tool_calls[0]
assert choice.finish_reason == "tool_calls" and choice.message.content is None
assert call.function.name in ("weather", "forecast") and json.loads(call.function.arguments)["unit"] in "CF"
named = {"type": "function", "function": {"name": "forecast"}}
with with_tools.chat.completions.stream(**ASK, tools=tools, tool_choice=named) as stream:
    final = stream.get_final_completion().choices[0].message
    assert final.tool_calls[0].function.name == "forecast", final
history = ASK["messages"] + [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "12 °C"}]
told = with_tools.chat.completions.create(**{**ASK, "messages": history}, tools=tools)
assert told.choices[0].finish_reason in ("stop", "length", "tool_calls")
free = with_tools.chat.completions.create(**ASK, tools=tools, tool_choice="none")
assert free.choices[0].message.tool_calls is None and free.choices[0].message.content

# The package has an exception class for each refusal.
for problem, body in [
    (openai.BadRequestError, {**ASK, "messages": []}),
    (openai.BadRequestError, {**ASK, "tools": tools}),  # the demo's own template has no place for tools
    (openai.NotFoundError, {**ASK, "model": "gpt"}),
]:
    try:
        client.chat.completions.create(**body)
        raise SystemExit(f"accepted: {body}")
    except problem as error:
        assert error.code and error.param, error

# The other routes.
card = client.models.retrieve("demo")
assert card.max_model_len and card.quantization["weight_bytes"] < card.quantization["weight_bytes_f32"] / 3
assert [model.id for model in client.models.list()] == ["demo"]
body = json.dumps({"messages": ASK["messages"]}).encode()
request = urllib.request.Request(os.environ["MICROGRANITE_URL"] + "/tokenize", body, {"content-type": "application/json"})
ids = json.load(urllib.request.urlopen(request))
assert ids["count"] == answer.usage.prompt_tokens
try:
    client.embeddings.create(model="demo", input="x")
    raise SystemExit("embeddings from a text model")
except openai.BadRequestError as error:
    assert error.code == "unsupported_endpoint"
