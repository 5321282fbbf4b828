"""The `anthropic` package and a model that thinks: thoughts, streams, tools, structured outputs, counts and errors."""

import json
import os

import anthropic

url = os.environ["MICROGRANITE_THINKING_URL"]
client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
ASK = dict(
    model="granite-4.2-tiny",
    messages=[{"role": "user", "content": "What is gravity?"}],
    # A token is little more than a byte here, and a call in tags has many.
    max_tokens=200,
    thinking={"type": "enabled", "budget_tokens": 20},
    extra_body={"seed": 7},
)


def without_ids(message):
    """What is the same in two answers to one request: the ids are not, and the prompt is in the cache later."""
    message = message.model_dump()
    message["id"] = None
    for block in message["content"]:
        block.pop("id", None)
        # The package's stream adds fields of its own.
        block.pop("parsed_output", None)
    del message["usage"]
    return message


# A thought and a text.
answer = client.messages.create(**ASK)
thought, text = answer.content
assert (thought.type, text.type) == ("thinking", "text") and thought.thinking and thought.signature, answer
assert answer._request_id, answer
assert answer.role == "assistant" and answer.stop_reason in ("end_turn", "max_tokens"), answer
assert 0 < answer.usage.output_tokens_details.thinking_tokens <= 20 < answer.usage.output_tokens, answer.usage

# The package joins the events of a stream to the same message.
with client.messages.stream(**ASK) as stream:
    joined = "".join(stream.text_stream)
    final = stream.get_final_message()
assert joined == text.text
assert without_ids(final) == without_ids(answer), final
assert final.usage.output_tokens == answer.usage.output_tokens
kinds = [event.type for event in client.messages.create(**ASK, stream=True)]
assert kinds[0] == "message_start" and kinds[-2:] == ["message_delta", "message_stop"], kinds

# Without `thinking` there is no thought. A thought in the history is taken back as it came.
plain = {name: value for name, value in ASK.items() if name != "thinking"}
assert [block.type for block in client.messages.create(**plain).content] == ["text"]
again = [*ASK["messages"], {"role": "assistant", "content": answer.content}, {"role": "user", "content": "And?"}]
client.messages.create(**{**ASK, "messages": again})

# Tools: forced behind a thought, streamed, and the result sent back.
schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
tools = [{"name": name, "description": "Checks.", "input_schema": schema} for name in ("check", "test")]
for choice in ({"type": "any"}, {"type": "tool", "name": "check"}):
    called = client.messages.create(**ASK, tools=tools, tool_choice=choice)
    assert called.stop_reason == "tool_use", called
    thought, call = called.content
    assert thought.type == "thinking" and call.type == "tool_use" and isinstance(call.input["ok"], bool), called
    with client.messages.stream(**ASK, tools=tools, tool_choice=choice) as stream:
        assert without_ids(stream.get_final_message()) == without_ids(called)
result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "done"}]}
history = [*ASK["messages"], {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
client.messages.create(**{**ASK, "messages": history}, tools=tools)

# Structured outputs come behind the thought.
form = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
formatted = client.messages.create(**ASK, output_config=form)
assert formatted.content[0].type == "thinking"
assert isinstance(json.loads(formatted.content[1].text)["ok"], bool)

# Stop sequences are named.
stop = next(letter for at, letter in enumerate(text.text) if at > 4 and letter.isascii() and letter not in text.text[:at])
stopped = client.messages.create(**ASK, stop_sequences=[stop])
assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop), stopped
assert stopped.content[1].text == text.text[: text.text.index(stop)]

# Counts are those of the prompt.
counted = client.messages.count_tokens(model=ASK["model"], messages=history, tools=tools, system="Be brief.")
whole = client.messages.create(**{**plain, "messages": history}, tools=tools, system="Be brief.")
assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens

# The package has an exception class for each refusal.
image = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}
for problem, kind, body in [
    (anthropic.BadRequestError, "invalid_request_error", {**ASK, "messages": []}),
    (anthropic.BadRequestError, "invalid_request_error", {**ASK, "messages": [{"role": "user", "content": [image]}]}),
    (anthropic.BadRequestError, "invalid_request_error", {**ASK, "max_tokens": 10}),
    (anthropic.BadRequestError, "invalid_request_error", {**ASK, "tools": [{"type": "bash_20250124", "name": "bash"}]}),
    (anthropic.NotFoundError, "not_found_error", {**ASK, "model": "claude"}),
]:
    for stream in (False, True):
        try:
            client.messages.create(**body, stream=stream)
            raise SystemExit(f"accepted: {body}")
        except problem as error:
            assert error.body["type"] == "error" and error.body["error"]["type"] == kind, error.body
            assert error.request_id == error.body["request_id"], error.body
try:
    client.messages.batches.list()
    raise SystemExit("batches")
except anthropic.NotFoundError as error:
    assert error.body["error"]["type"] == "not_found_error", error.body
