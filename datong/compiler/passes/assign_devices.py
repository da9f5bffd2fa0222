"""Devices in a row: the layers before a split run on one device, those from it on the next.

Requires: a draft in its final operators, not fused yet; the placer's splits, each the first layer of the next device.
Rules:
  1. a node names its layer by its `layer` attribute, else by its weights: the first number between dots in a name
     (`model.layers.7.mlp.up_proj.weight`, `blk.7.attn_q.weight`); several names: the highest;
  2. it belongs to the device of its layer, or to that of its last input where that is later: without a layer (final
     norm, logits, additions) it goes with its inputs, and without inputs from other nodes (embedding) it comes first.
Ensures: nodes stand device by device, in their old order otherwise; the placer knows the device of each.
"""

from __future__ import annotations

import re
from bisect import bisect_right

from datong.compiler.draft import Draft
from datong.compiler.partition import Placer
from datong.errors import InvalidRequest
from datong.spec.program import Node

_NUMBER = re.compile(r"(?:^|\.)(\d+)\.")


def run(draft: Draft, placer: Placer) -> int:
    """Reorder in place; returns the number of nodes that are not on the first device. Raises InvalidRequest."""
    if not placer.splits:
        return 0
    layers = {node.name: layer for node in draft.nodes if (layer := layer_of(draft, node)) is not None}
    _check(placer.splits, max(layers.values(), default=-1) + 1)
    stages: dict[str, int] = {}
    made: dict[str, int] = {}  # value -> stage of the node that makes it
    for node in draft.nodes:
        own = bisect_right(placer.splits, layers.get(node.name, 0))
        stage = max([own, *(made.get(name, 0) for name in node.inputs)])
        stages[node.name] = stage
        made.update(dict.fromkeys(node.outputs, stage))
    draft.nodes.sort(key=lambda node: stages[node.name])  # stable, and no node is before its inputs
    placer.assign(stages)
    return sum(stage > 0 for stage in stages.values())


def layer_of(draft: Draft, node: Node) -> int | None:
    """The layer that a node names, None if it names none."""
    if "layer" in node.attrs:
        return int(str(node.attrs["layer"]))
    weights = [name for name in node.inputs if name and draft.values[name].kind == "weight"]
    return max((int(found[1]) for name in weights if (found := _NUMBER.search(name))), default=None)


def _check(splits: tuple[int, ...], layers: int) -> None:
    wrong = next((split for split in splits if not 1 <= split < layers), None)
    if wrong is not None:
        raise InvalidRequest(
            "split",
            f"the first layer of the next device should be from 1 to {layers - 1}, got {wrong}",
            f"the model has {layers} layers, numbered from 0",
        )
