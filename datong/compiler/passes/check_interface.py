"""Check that the graph has the inputs and outputs of a decoder package.

Requires: any ONNX graph.
Rules:
  1. inputs are `input_ids` and `position_ids`, `[batch, seq]` i64, both dims symbolic; a head for speculation also has
     `hidden`, `[batch, seq, n]` f32;
  2. the others are pairs `past_key_values.N.key`, `past_key_values.N.value`, `[batch, kv_heads, past, head_dim]` f32,
     with or without `past_key_values.N.index`, of one head; and `past_state.N.recurrent`, `past_state.N.conv`,
     `[batch, heads, key_dim, value_dim]` f32;
  3. outputs are `logits` and, for the same layers, `present.N.key`, `present.N.value`, `present_state.N.recurrent`,
     `present_state.N.conv`; a model with heads for speculation also gives `hidden`, `[batch, seq, n]`, and a head
     `hidden_out`.
Ensures: every graph input has `dims` with the symbols `batch`, `seq`, `past`.

Names as onnxruntime-genai has them (design.md §3).
"""

from __future__ import annotations

import re
from pathlib import Path

import onnx_ir as ir

from datong.compiler.match import BATCH, PAST, SEQ
from datong.errors import CompileError

PAST_NAME = re.compile(r"past_key_values\.(\d+)\.(key|value|index)\Z")
PRESENT_NAME = re.compile(r"present\.(\d+)\.(key|value|index)\Z")
STATE_NAME = re.compile(r"(past|present)_state\.(\d+)\.(recurrent|conv)\Z")
HIDDEN, HIDDEN_OUT = "hidden", "hidden_out"
WHERE = "compile"
HINT = "docs/package says how a graph's inputs and outputs are named"


def run(graph: ir.Graph, root: Path) -> int:
    """Label the inputs. Raises CompileError that names the input or output that is wrong."""
    layers: set[tuple[str, str]] = set()
    for value in graph.inputs:
        found, state = PAST_NAME.match(value.name or ""), STATE_NAME.match(value.name or "")
        if value.name in ("input_ids", "position_ids"):
            _tokens(value)
        elif value.name == HIDDEN:
            _hidden(value)
        elif found:
            _past(value)
            layers.add((found[1], found[2]))
        elif state:
            _state(value)
            layers.add((state[2], state[3]))
        else:
            raise CompileError(WHERE, f"input `{value.name}` should be input_ids, position_ids or a cache", HINT)
    have = [value.name for value in graph.inputs]
    if "input_ids" not in have:
        raise CompileError(WHERE, f"the graph should have an input `input_ids`, it has {have}", HINT)
    _outputs(graph, layers)
    return 0


def _shape(value: ir.Value) -> list[int | None]:
    """Sizes, None for a symbolic dim."""
    return [] if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]


def _tokens(value: ir.Value) -> None:
    if _shape(value) != [None, None] or value.dtype != ir.DataType.INT64:
        raise CompileError(
            WHERE,
            f"input `{value.name}` should be [batch, seq] int64 with free sizes, it is {value.dtype} {value.shape}",
            HINT,
        )
    value.meta["dims"] = (BATCH, SEQ)


def _hidden(value: ir.Value) -> None:
    shape = _shape(value)
    if len(shape) != 3 or shape[2] is None or shape[:2] != [None, None] or value.dtype != ir.DataType.FLOAT:
        raise CompileError(WHERE, f"input `{value.name}` should be [batch, seq, n] float32, it is {value.shape}", HINT)
    value.meta["dims"] = (BATCH, SEQ, shape[2])


def _past(value: ir.Value) -> None:
    shape = _shape(value)
    if len(shape) != 4 or shape[1] is None or shape[3] is None or shape[0] is not None or shape[2] is not None:
        raise CompileError(
            WHERE, f"input `{value.name}` should be [batch, kv_heads, past, head_dim], it is {value.shape}", HINT
        )
    value.meta["dims"] = (BATCH, shape[1], PAST, shape[3])


def _state(value: ir.Value) -> None:
    shape = _shape(value)
    if len(shape) != 4 or None in shape[1:] or shape[0] is not None:
        raise CompileError(
            WHERE, f"input `{value.name}` should be [batch, heads, key_dim, value_dim], it is {value.shape}", HINT
        )
    value.meta["dims"] = (BATCH, *shape[1:])


def _outputs(graph: ir.Graph, layers: set[tuple[str, str]]) -> None:
    presents: set[tuple[str, str]] = set()
    for value in graph.outputs:
        found, state = PRESENT_NAME.match(value.name or ""), STATE_NAME.match(value.name or "")
        if found:
            presents.add((found[1], found[2]))
        elif state:
            presents.add((state[2], state[3]))
        elif value.name not in ("logits", HIDDEN, HIDDEN_OUT):
            raise CompileError(WHERE, f"output `{value.name}` should be logits, hidden or a cache", HINT)
    if "logits" not in [value.name for value in graph.outputs]:
        raise CompileError(WHERE, "the graph should have an output `logits`, it has none", HINT)
    if presents != layers:
        odd = sorted(f"{n}.{kind}" for n, kind in presents ^ layers)
        raise CompileError(WHERE, f"every cache input should have its present output, unpaired: {odd}", HINT)
