"""IBM's mellea with its backend for compatible servers: instructions, chat, requirements, formats and tools."""

import os

import mellea
from mellea.backends import ModelOption
from mellea.backends.openai import OpenAIBackend
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
print("mellea is content")
