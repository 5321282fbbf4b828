"""LiteLLM with its provider `openai/` for compatible servers: thoughts, streams, tools, schemas, text, and errors."""

import asyncio
import json
import os

import litellm

URL = os.environ["MICROGRANITE_THINKING_URL"] + "/v1"
ASK = dict(
    model="openai/granite-4.2-tiny",
    api_base=URL,
    api_key="none",
    messages=[{"role": "user", "content": "What is gravity?"}],
    # A token is little more than a byte here, and a call in tags has many.
    max_tokens=300,
    seed=7,
    num_retries=0,
    extra_body={"thinking_token_budget": 20},
)
litellm.telemetry = False

answer = litellm.completion(**ASK)
message = answer.choices[0].message
assert message.reasoning_content, message
assert 0 < answer.usage.completion_tokens_details.reasoning_tokens <= 20, answer.usage

chunks = list(litellm.completion(**ASK, stream=True, stream_options={"include_usage": True}))
built = litellm.stream_chunk_builder(chunks, messages=ASK["messages"])
assert built.choices[0].message.content == message.content, built
assert built.choices[0].message.reasoning_content == message.reasoning_content, built
assert built.usage.completion_tokens == answer.usage.completion_tokens, built.usage
assert asyncio.run(litellm.acompletion(**ASK)).choices[0].message.content == message.content

# LiteLLM passes on OpenAI's effort only if it is told that the model knows it.
off = litellm.completion(**{**ASK, "extra_body": {}}, reasoning_effort="none", allowed_openai_params=["reasoning_effort"])
assert off.usage.completion_tokens_details.reasoning_tokens == 0, off.usage

schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
formatted = litellm.completion(
    **ASK, response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
)
assert isinstance(json.loads(formatted.choices[0].message.content)["ok"], bool), formatted

tools = [{"type": "function", "function": {"name": "check", "parameters": schema}}]
called = litellm.completion(**ASK, tools=tools, tool_choice="required").choices[0]
assert called.finish_reason == "tool_calls", called
call = called.message.tool_calls[0]
assert isinstance(json.loads(call.function.arguments)["ok"], bool), call
result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
litellm.completion(**{**ASK, "messages": [*ASK["messages"], called.message.model_dump(), result]}, tools=tools)
chunks = list(litellm.completion(**ASK, tools=tools, tool_choice="required", stream=True))
built = litellm.stream_chunk_builder(chunks).choices[0].message
assert built.tool_calls[0].function.arguments == call.function.arguments, built

text = litellm.text_completion(
    model="text-completion-openai/granite-4.2-tiny", api_base=URL, api_key="none", prompt="a", max_tokens=5
)
assert text.usage.completion_tokens == 5, text

# LiteLLM tells a prompt that is too long by the words of the message, and offers a retry with a shorter one.
try:
    litellm.completion(**{**ASK, "messages": [{"role": "user", "content": "word " * 3000}]})
    raise AssertionError("a prompt beyond the context was taken")
except litellm.ContextWindowExceededError:
    pass
try:
    litellm.completion(**{**ASK, "temperature": 3})
    raise AssertionError("a temperature out of range was taken")
except litellm.BadRequestError as error:
    assert "temperature" in str(error), error
print("LiteLLM is content")
