#!/usr/bin/env python3
"""Renders conversations with Jinja as transformers sets it up, and writes hashes of the texts to chat_goldens.json.

    pip install jinja2==3.1.6 tokenizers==0.22.1
    MICROGRANITE_ASSETS=… python3 tests/sources/chat_goldens.py

The templates are not ours to copy, so the file holds conversations and hashes only.
"""

import datetime
import hashlib
import json
import os
import pathlib

import jinja2.ext
import jinja2.sandbox

TEMPLATES = {
    "granite-3.3": ("granite-3.3", "chat_template.UNVERIFIED.jinja"),
    "granite-4.0": ("granite-4.x", "chat_template-4.0.from-llama.cpp-fork.jinja"),
    "granite-4.1": ("granite-4.x", "chat_template-4.1.jinja"),
}
NOW = datetime.datetime(2026, 3, 5, 14, 30, tzinfo=datetime.timezone.utc)

USER = {"role": "user", "content": "Wie heißt die Hauptstadt von Frankreich? 🚀\n\n  Zwei Zeilen."}
SYSTEM = {"role": "system", "content": "You answer in one word."}
ASSISTANT = {"role": "assistant", "content": "Paris"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather at a \"place\" — now, in °C.\n",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "a town & country <ISO>"},
                    "days": {"type": "integer", "minimum": 0, "default": 1, "enum": []},
                    "share": {"type": "number", "maximum": 0.5, "multipleOf": 1e-05, "default": 1e16},
                    "exact": {"type": "boolean", "default": None, "examples": [True, False, {}]},
                },
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
DOCUMENTS = [
    {"doc_id": 1, "title": "Paris", "text": "Paris is the capital of France."},
    {"doc_id": "b-2", "text": "Berlin's weather is 'mild'\tmostly."},
]
CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"place": "Paris", "days": 2, "x": [1.0, "é"]}},
        },
        {"id": "call_2", "type": "function", "function": {"name": "now", "arguments": {}}},
    ],
}
RESULTS = [
    {"role": "tool", "content": "{\"sky\": \"clear\"}", "tool_call_id": "call_1"},
    {"role": "tool", "content": "noon", "tool_call_id": "call_2"},
]

# The cases to render; templates support `tool_calls` only since Granite 4.
CASES = [
    {"messages": [USER]},
    {"messages": [SYSTEM, USER]},
    {"messages": [SYSTEM, USER, ASSISTANT, USER]},
    {"messages": [USER, ASSISTANT], "closed": True},
    {"messages": [USER], "tools": TOOLS},
    {"messages": [SYSTEM, USER], "tools": TOOLS},
    {"messages": [USER], "documents": DOCUMENTS},
    {"messages": [USER], "tools": TOOLS, "documents": DOCUMENTS},
    {"messages": [USER, CALLS, *RESULTS, ASSISTANT, USER], "tools": TOOLS, "only": ["granite-4.0", "granite-4.1"]},
    {"messages": [USER], "variables": {"thinking": True}},
    {"messages": [USER], "documents": DOCUMENTS, "variables": {"controls": {"citations": True, "length": "short"}}},
    {"messages": [USER, SYSTEM, USER]},
    {"messages": [{"role": "user", "content": ""}]},
]


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment(extensions=()):
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, *extensions]
    )
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = NOW.strftime
    return made


def main():
    import tokenizers

    assets = pathlib.Path(os.environ["MICROGRANITE_ASSETS"])
    goldens = []
    for name, (folder, file) in TEMPLATES.items():
        template = environment().from_string((assets / folder / file).read_text())
        tokenizer = tokenizers.Tokenizer.from_file(str(assets / folder / "tokenizer.json"))
        for number, case in enumerate(CASES):
            if name not in case.get("only", [name]):
                continue
            text = template.render(
                messages=case["messages"],
                tools=case.get("tools"),
                documents=case.get("documents"),
                add_generation_prompt=not case.get("closed", False),
                **case.get("variables", {}),
            )
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            goldens.append(
                {
                    "template": f"{folder}/{file}",
                    "case": number,
                    "bytes": len(text.encode()),
                    "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
                    "ids": len(ids),
                    "ids_sha256": hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
                }
            )
    out = pathlib.Path(__file__).with_name("chat_goldens.json")
    out.write_text(json.dumps({"now": NOW.isoformat(), "cases": CASES, "goldens": goldens}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
