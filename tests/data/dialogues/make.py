"""Makes captured.json: answers as models write them, by rendering one conversation through published chat templates.

    python tests/data/dialogues/make.py DIRECTORY

DIRECTORY holds `<model>.jinja`, such as `models/templates` of llama.cpp (in the sdist of llama-cpp-python 0.3.36). The
templates themselves belong to the models' makers and are not kept here: only what they render, and which marks of
ours they hold.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from datong.engine.chat_template import ChatTemplate
from datong.errors import TemplateError
from datong.importer.dialogue.choose import entries

MODELS = (
    "GLM-4.6", "GLM-4.7-Flash", "HuggingFaceTB-SmolLM3-3B", "MiniMax-M1", "MiniMax-M2", "MiniMax-M3",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "Qwen-QwQ-32B", "Qwen-Qwen2.5-7B-Instruct", "Qwen-Qwen3-0.6B",
    "Qwen3-Coder", "Qwen3.5-4B", "StepFun3.5-Flash", "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "deepseek-ai-DeepSeek-V3.1", "deepseek-ai-DeepSeek-V3.2", "llama-cpp-deepseek-r1",
    "meta-llama-Llama-3.1-8B-Instruct", "meta-llama-Llama-3.2-3B-Instruct", "mistralai-Mistral-Nemo-Instruct-2407",
)  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "set_valve",
            "description": "Open or close a valve.",
            "parameters": {
                "type": "object",
                "properties": {
                    "line": {"type": "string"},
                    "percent": {"type": "integer"},
                    "hold": {"type": "boolean"},
                    "steps": {"type": "array", "items": {"type": "number"}},
                    "limits": {"type": "object", "properties": {"low": {"type": "number"}, "unit": {"type": "string"}}},
                },
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "log",
            "description": "Write a line into the journal.",
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
        },
    },
]
FIRST = {"line": "7", "percent": 35, "hold": True, "steps": [1.5, 2], "limits": {"low": 0.5, "unit": "bar"}}
SECOND = {"text": 'a < b, "阀门" opened\nsecond line </x>'}
CALLS = [("set_valve", FIRST), ("log", SECOND)]
ENDS = (
    "<|im_end|>",
    "[e~[",
    "<end_of_sentence>",
    "<｜end▁of▁sentence｜>",
    "<|eot_id|>",
    "<EOS>",
)  # never part of a text
USER = {"role": "user", "content": "Open valve 7 to 35 percent and log it."}
SPECIALS = {"bos_token": "<BOS>", "eos_token": "<EOS>"}


def answer(template: ChatTemplate, calls: list[tuple[str, dict[str, object]]], as_text: bool) -> tuple[str, str]:
    """(prompt, what the assistant says after it)."""
    message = {
        "role": "assistant",
        "content": "I will do that.",
        "reasoning_content": "The user wants valve 7.",
        "tool_calls": [
            {
                "id": f"call{i}2345",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(args) if as_text else args},
            }
            for i, (name, args) in enumerate(calls)
        ],
    }
    prompt = template.render([USER], tools=TOOLS)
    whole = template.render([USER, message], tools=TOOLS, add_generation_prompt=False)
    bare = template.render([USER], tools=TOOLS, add_generation_prompt=False)
    common = prompt if whole.startswith(prompt) else bare
    if not whole.startswith(common):
        raise TemplateError("template", "the answer does not continue the prompt")
    text = whole[len(common) :].rstrip("\n")
    for end in ENDS:
        text = text.removesuffix(end)
    return common, text


def main(directory: Path) -> None:
    """Write captured.json beside this script."""
    rows = []
    for path in (directory / f"{model}.jinja" for model in MODELS):
        source = path.read_text(encoding="utf-8")
        marks = sorted({mark for entry in entries() for mark in (*entry.marks, *entry.without) if mark in source})
        for count in (2, 1):
            for as_text in (False, True):
                try:
                    prompt, text = answer(ChatTemplate(source, SPECIALS), CALLS[:count], as_text)
                except TemplateError as error:
                    print(f"{path.stem}: {str(error)[:150]}")
                    continue
                if "set_valve" in text:
                    rows.append({"model": path.stem, "marks": marks, "calls": count, "end": prompt[-24:], "text": text})
                    break
            else:
                continue
            break
    out = Path(__file__).parent / "captured.json"
    out.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(len(rows), "answers")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
