"""LangChain's `ChatOpenAI`: chat, streams, tools, structured output, and a conversation with a tool's result."""

import asyncio
import os
from typing import Annotated, Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

URL = os.environ["MICROGRANITE_THINKING_URL"] + "/v1"


def chat(**more):
    # A token is little more than a byte here, and a call in tags has many.
    settings = dict(model="granite-4.2-tiny", base_url=URL, max_tokens=300, seed=7, max_retries=0)
    return ChatOpenAI(**settings, extra_body={"thinking_token_budget": 20}, **more)


llm = chat()
answer = llm.invoke("What is gravity?")
usage = answer.usage_metadata
assert 0 < usage["output_token_details"]["reasoning"] <= 20, usage
assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"], usage
pieces = list(chat(stream_usage=True).stream("What is gravity?"))
assert len(pieces) > 10
whole = pieces[0]
for piece in pieces[1:]:
    whole = whole + piece
assert whole.content == answer.content, whole
assert whole.usage_metadata["output_tokens"] == usage["output_tokens"], whole.usage_metadata
assert asyncio.run(llm.ainvoke("What is gravity?")).content == answer.content


class Verdict(BaseModel):
    """Whether a claim holds."""

    holds: bool
    certainty: int = Field(ge=0, le=9)


for method in ["json_schema", "function_calling"]:
    verdict = llm.with_structured_output(Verdict, method=method).invoke("Do apples fall?")
    assert isinstance(verdict, Verdict) and 0 <= verdict.certainty <= 9, (method, verdict)
raw = llm.with_structured_output(Verdict, method="json_schema", include_raw=True).invoke("Do apples fall?")
assert raw["parsing_error"] is None and raw["parsed"], raw


# The model's weights are random, so the arguments have few values: a text would only end with the answer.
@tool
def weather(city: Literal["Rome", "Oslo"], days: Annotated[int, Field(ge=1, le=9)]) -> str:
    """The weather of a city in the next days."""
    return f"{days} days of sun in {city}"


# A forced call is run, and its result goes back.
bound = llm.bind_tools([weather], tool_choice="weather")
asked = [HumanMessage("How is the weather in Rome?")]
called = bound.invoke(asked)
assert [call["name"] for call in called.tool_calls] == ["weather"], called
assert isinstance(called.tool_calls[0]["args"]["days"], int), called.tool_calls
result = weather.invoke(called.tool_calls[0])
assert isinstance(result, ToolMessage) and "days of sun" in result.content, result
last = llm.bind_tools([weather]).invoke([*asked, called, result])
assert last.response_metadata["finish_reason"] in ("stop", "length", "tool_calls"), last
streamed = None
for piece in bound.stream(asked):
    streamed = piece if streamed is None else streamed + piece
assert streamed.tool_calls[0]["args"] == called.tool_calls[0]["args"], streamed
print("LangChain's chat is content")
