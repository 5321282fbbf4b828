"""IBM's granite-io: its Granite 3.3 processor writes the prompts itself and asks for texts."""

import asyncio
import os

import openai
from granite_io import UserMessage, make_backend, make_io_processor
from granite_io.io.granite_3_3.input_processors.granite_3_3_input_processor import Granite3Point3Inputs

URL = os.environ["MICROGRANITE_THINKING_URL"] + "/v1"
backend = make_backend("openai", {"model_name": "granite-4.2-tiny", "openai_base_url": URL, "openai_api_key": "none"})
processor = make_io_processor("Granite 3.3", backend=backend)


async def ask(**more):
    generate = dict(model="granite-4.2-tiny", max_tokens=20, temperature=0.7)
    messages = [UserMessage(content="What is gravity?")]
    inputs = Granite3Point3Inputs(messages=messages, **more, generate_inputs=generate)
    completed = await processor.acreate_chat_completion(inputs)
    return completed.results


async def main():
    plain = await ask()
    assert plain[0].next_message.content, plain
    documents = [{"doc_id": "1", "text": "Apples fall."}]
    for more in [{"thinking": True}, {"documents": documents, "controls": {"citations": True}}]:
        assert len(await ask(**more)) == 1


asyncio.run(main())

# What such a client sends is a text with control tokens, which are one token each on this route.
client = openai.OpenAI(base_url=URL, api_key="none")
answer = client.completions.create(model="granite-4.2-tiny", prompt="<|im_start|>user\nu<|im_end|>\n", max_tokens=1)
assert answer.usage.prompt_tokens < 10, answer.usage
print("granite-io is content")
