"""The `openai` package and a model that thinks: thoughts, budgets, calls in tags, schemas behind thoughts."""

import json
import os

import openai

client = openai.OpenAI(base_url=os.environ["MICROGRANITE_THINKING_URL"] + "/v1", max_retries=0)
ASK = dict(
    model="granite-4.2-tiny",
    messages=[{"role": "user", "content": "What is gravity?"}],
    # A token is little more than a byte here, and a call in tags has many.
    max_completion_tokens=200,
    seed=7,
    extra_body={"thinking_token_budget": 20},
)

# The package keeps fields that it does not know. Both names have the same text.
answer = client.chat.completions.create(**ASK)
message = answer.choices[0].message
assert message.reasoning and message.reasoning == message.reasoning_content, message
details = answer.usage.completion_tokens_details
assert 0 < details.reasoning_tokens <= 20 < answer.usage.completion_tokens, answer.usage

# The pieces of a stream add up to the same.
events = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
deltas = [event.choices[0].delta for event in events if event.choices]
assert "".join(getattr(delta, "reasoning", None) or "" for delta in deltas) == message.reasoning
assert "".join(delta.content or "" for delta in deltas) == (message.content or "")
assert events[-1].usage == answer.usage

# OpenAI's own field turns it off; a thought in the history is taken back as it came.
off = client.chat.completions.create(**{**ASK, "extra_body": {}}, reasoning_effort="none")
assert getattr(off.choices[0].message, "reasoning", None) is None
assert off.usage.completion_tokens_details.reasoning_tokens == 0
again = [*ASK["messages"], {"role": "assistant", **message.model_dump(exclude_none=True)}, {"role": "user", "content": "And?"}]
client.chat.completions.create(**{**ASK, "messages": again})

# A schema and a forced call come behind the thought.
schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
formatted = client.chat.completions.create(
    **ASK, response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
)
assert isinstance(json.loads(formatted.choices[0].message.content)["ok"], bool)
assert formatted.choices[0].message.reasoning
tools = [{"type": "function", "function": {"name": "check", "parameters": schema}}]
called = client.chat.completions.create(**ASK, tools=tools, tool_choice="required").choices[0]
assert called.finish_reason == "tool_calls" and called.message.reasoning and called.message.content is None
assert isinstance(json.loads(called.message.tool_calls[0].function.arguments)["ok"], bool)
with client.chat.completions.stream(**ASK, tools=tools, tool_choice="required") as stream:
    final = stream.get_final_completion().choices[0].message
    assert final.tool_calls[0].function.arguments == called.message.tool_calls[0].function.arguments, final
