"""LangChain's `OpenAI`: one answer, several, a stream, and asynchronously."""

import asyncio
import os

from langchain_openai import OpenAI

llm = OpenAI(base_url=os.environ["MICROGRANITE_URL"] + "/v1", model="demo", temperature=0, max_tokens=12)

answer = llm.invoke("The capital of France is")
assert "Paris" in answer, answer
assert llm.batch(["The capital of France is", "Two and two is"])[0] == answer
assert "".join(llm.stream("The capital of France is")) == answer
assert asyncio.run(llm.ainvoke("The capital of France is")) == answer
assert "," not in llm.invoke("One, two, three,", stop=[","])
generated = llm.generate(["The capital of France is", "Two and two is"])
usage = generated.llm_output["token_usage"]
assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 20, usage
print("LangChain is content")
