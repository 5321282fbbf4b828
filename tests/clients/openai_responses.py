"""The `openai` package's Responses API and a model that thinks: thoughts, streams, tools, schemas and errors."""

import json
import os

import openai
from pydantic import BaseModel

client = openai.OpenAI(base_url=os.environ["MICROGRANITE_THINKING_URL"] + "/v1", max_retries=0)
ASK = dict(
    model="granite-4.2-tiny",
    input="What is gravity?",
    # A token is little more than a byte here, and a call in tags has many.
    max_output_tokens=200,
    extra_body={"thinking_token_budget": 20, "seed": 7},
)


def without_ids(response):
    """What is the same in two answers to one request: the ids are not, and the prompt is in the cache later."""
    items = [item.model_dump() for item in response.output]
    for item in items:
        item["id"] = None
        item.pop("call_id", None)
        # The package adds what it has parsed.
        item.pop("parsed_arguments", None)
        for part in item.get("content") or []:
            part.pop("parsed", None)
    return items, response.status, response.usage.output_tokens


# A thought and a message.
answer = client.responses.create(**ASK, instructions="Be brief.", metadata={"a": "b"}, store=True)
thought, message = answer.output
assert (thought.type, message.type) == ("reasoning", "message") and thought.content[0].text, answer
assert answer.output_text == message.content[0].text, answer
assert answer.status in ("completed", "incomplete") and answer.store is False and answer.metadata == {"a": "b"}, answer
assert answer.instructions == "Be brief.", answer
assert 0 < answer.usage.output_tokens_details.reasoning_tokens <= 20 < answer.usage.output_tokens, answer.usage

# The package joins the events of a stream to the same response.
plain = client.responses.create(**ASK)
events = list(client.responses.create(**ASK, stream=True))
assert [event.sequence_number for event in events] == list(range(len(events)))
assert events[0].type == "response.created" and events[-1].type == "response." + plain.status, events[-1]
assert without_ids(events[-1].response) == without_ids(plain)
deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
assert "".join(deltas) == plain.output_text
thoughts = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
assert "".join(thoughts) == plain.output[0].content[0].text

# Thinking is turned off by OpenAI's own field, and an answer is taken back as input.
off = client.responses.create(**{**ASK, "extra_body": {}}, reasoning={"effort": "none"})
assert [item.type for item in off.output] == ["message"] and off.usage.output_tokens_details.reasoning_tokens == 0
history = [{"role": "user", "content": ASK["input"]}, *answer.output, {"role": "user", "content": "And?"}]
client.responses.create(**{**ASK, "input": history})

# Tools: forced behind a thought, streamed, and the result sent back.
schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
tools = [{"type": "function", "name": name, "parameters": schema, "strict": True} for name in ("check", "test")]
for choice in ("required", {"type": "function", "name": "check"}):
    called = client.responses.create(**ASK, tools=tools, tool_choice=choice)
    thought, call = called.output
    assert called.status == "completed" and call.type == "function_call", called
    assert isinstance(json.loads(call.arguments)["ok"], bool), called
    with client.responses.stream(**ASK, tools=tools, tool_choice=choice) as stream:
        assert without_ids(stream.get_final_response()) == without_ids(called)
result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
client.responses.create(**{**ASK, "input": [history[0], *called.output, result]}, tools=tools)


# Structured outputs come behind the thought.
class Verdict(BaseModel):
    ok: bool


parsed = client.responses.parse(**ASK, text_format=Verdict)
assert isinstance(parsed.output_parsed, Verdict) and parsed.output[0].type == "reasoning", parsed
with client.responses.stream(**ASK, text_format=Verdict) as stream:
    final = stream.get_final_response()
assert final.output_parsed == parsed.output_parsed, final

# What is cut off is incomplete.
cut = client.responses.create(**{**ASK, "max_output_tokens": 30})
assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens", cut

# The package has an exception class for each refusal.
for problem, param, body in [
    (openai.BadRequestError, "input", {**ASK, "input": []}),
    (openai.BadRequestError, "input[0].content[0].type", {**ASK, "input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}),
    (openai.BadRequestError, "tools[0].type", {**ASK, "tools": [{"type": "web_search"}]}),
    (openai.BadRequestError, "previous_response_id", {**ASK, "previous_response_id": answer.id}),
    (openai.BadRequestError, "background", {**ASK, "background": True}),
    (openai.NotFoundError, "model", {**ASK, "model": "gpt"}),
]:
    for stream in (False, True):
        try:
            client.responses.create(**body, stream=stream)
            raise SystemExit(f"accepted: {body}")
        except problem as error:
            assert error.param == param and error.code, error
try:
    client.responses.retrieve(answer.id)
    raise SystemExit("a stored response")
except openai.NotFoundError as error:
    assert error.code == "not_found", error
