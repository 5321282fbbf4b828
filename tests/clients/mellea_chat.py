"""IBM's mellea with its backend for compatible servers: instructions, chat, requirements, formats, tools, streams."""

import asyncio
import os

import mellea
from mellea.backends import ModelOption
from mellea.backends.openai import OpenAIBackend
from mellea.backends.tools import MelleaTool
from mellea.core import Requirement
from mellea.stdlib.context import ChatContext
from mellea.stdlib.requirements import simple_validate
from mellea.stdlib.sampling import RejectionSamplingStrategy
from pydantic import BaseModel

# A token is little more than a byte here.
OPTIONS = {ModelOption.MAX_NEW_TOKENS: 120, ModelOption.SEED: 7}
backend = OpenAIBackend(
    "granite-4.2-tiny",
    base_url=os.environ["MICROGRANITE_THINKING_URL"] + "/v1",
    api_key="none",
    model_options=OPTIONS,
    default_extra_body={"thinking_token_budget": 20},
)
session = mellea.MelleaSession(backend, ctx=ChatContext())

said = session.chat("What is gravity?")
assert said.content, said
again = session.chat("And what is mass?")
assert again.content and len(session.ctx.as_list()) == 4, session.ctx.as_list()
session.reset()

# The model's weights are random, so the requirement is one that any text meets.
short = Requirement("at most 500 letters", validation_fn=simple_validate(lambda text: len(text) <= 500))
sampled = session.instruct(
    "Say something short.",
    requirements=[short],
    strategy=RejectionSamplingStrategy(loop_budget=2),
    return_sampling_results=True,
)
assert sampled.success, sampled
session.reset()


class Verdict(BaseModel):
    holds: bool


formatted = session.instruct("Do apples fall?", format=Verdict)
assert isinstance(Verdict.model_validate_json(str(formatted)).holds, bool), formatted
session.reset()


def note(holds: bool) -> str:
    """Notes whether a claim holds.

    Args:
        holds: Whether it holds.
    """
    return "held" if holds else "not held"


options = {ModelOption.TOOLS: [MelleaTool.from_callable(note)], ModelOption.TOOL_CHOICE: "required"}
# A call in tags has many tokens.
options[ModelOption.MAX_NEW_TOKENS] = 300
called = session.instruct("Do apples fall?", model_options=options, tool_calls=True, strategy=None)
assert [call.name for call in called.tool_calls] == ["note"], called.tool_calls
assert called.tool_calls[0].call_func() in ("held", "not held"), called.tool_calls
session.reset()


async def stream():
    options = {ModelOption.STREAM: True}
    thunk = await session.ainstruct("Say something.", strategy=None, model_options=options, await_result=False)
    pieces = 0
    while not thunk.is_computed():
        await thunk.astream()
        pieces += 1
    return pieces, thunk.value


pieces, text = asyncio.run(stream())
assert pieces > 1 and text, (pieces, text)
print("mellea is content")
