"""The compiler on a page: graph.onnx `[batch, seq]` -> Program over flattened tokens and paged caches.

Each line below is a pass, in order; its file says what it requires and ensures. The graph is verified after each one
with `verify=True` or DATONG_VERIFY=1. This module imports onnx_ir: on the warm path go through cache.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir

from datong import env
from datong.compiler import memory, partition
from datong.compiler import verify as check
from datong.compiler.draft import Draft
from datong.compiler.partition import Placer
from datong.compiler.passes import (
    assign_devices,
    bind_block_weights,
    bind_tile_weights,
    bind_weights,
    check_interface,
    check_nodes,
    drop_dead,
    drop_noops,
    expose_hidden,
    flatten_tokens,
    fuse_add_rms_norm,
    fuse_linear_add,
    fuse_linear_glu,
    fuse_linear_multi,
    infer_shapes,
    inline_functions,
    lower_graph,
    merge_duplicates,
    recognise_attention,
    recognise_concat,
    recognise_elementwise,
    recognise_embedding,
    recognise_functions,
    recognise_glu,
    recognise_layer_norm,
    recognise_linear,
    recognise_rms_norm,
    recognise_rope,
    recognise_rope_table,
    recognise_slice,
    select_rows,
)
from datong.package.manifest import GRAPH
from datong.package.reader import Package
from datong.spec.backend import Backend
from datong.spec.program import Program

FRONT: tuple[tuple[str, Callable[[ir.Graph, Path], int]], ...] = (
    ("check_interface", check_interface.run),  # inputs and outputs of a decoder
    ("check_nodes", check_nodes.run),  # every node as its schema says
    ("bind_weights", bind_weights.run),  # initializers -> file, offset, length
    ("bind_block_weights", bind_block_weights.run),  # dequantisation chains -> weights
    ("bind_tile_weights", bind_tile_weights.run),  # the same of tile formats
    ("infer_shapes", infer_shapes.run),  # where batch and seq are
    ("drop_noops", drop_noops.run),
    ("recognise_embedding", recognise_embedding.run),
    ("recognise_linear", recognise_linear.run),
    ("recognise_slice", recognise_slice.run),
    ("recognise_rms_norm", recognise_rms_norm.run),
    ("recognise_layer_norm", recognise_layer_norm.run),
    ("recognise_rope_table", recognise_rope_table.run),
    ("recognise_rope", recognise_rope.run),
    ("recognise_attention", recognise_attention.run),  # caches leave the graph
    ("recognise_functions", recognise_functions.run),  # what ONNX lacks
    ("recognise_glu", recognise_glu.run),
    ("recognise_concat", recognise_concat.run),
    ("recognise_elementwise", recognise_elementwise.run),
    ("flatten_tokens", flatten_tokens.run),  # [batch, seq, n] -> [T, n], or a refusal by name
)
BACK: tuple[tuple[str, Callable[[Draft, Placer], int]], ...] = (
    ("merge_duplicates", merge_duplicates.run),
    ("drop_dead", drop_dead.run),
    ("select_rows", select_rows.run),  # logits only where asked
    ("assign_devices", assign_devices.run),  # layers to devices in a row
)
FUSE: tuple[tuple[str, Callable[[Draft, Placer], int]], ...] = (
    ("fuse_linear_glu", fuse_linear_glu.run),
    ("fuse_linear_multi", fuse_linear_multi.run),
    ("fuse_linear_add", fuse_linear_add.run),
    ("fuse_add_rms_norm", fuse_add_rms_norm.run),
)


def compile_graph(
    model: ir.Model,
    root: Path,
    backends: Sequence[Backend],
    *,
    splits: Sequence[int] = (),
    strict: bool = False,
    verify: bool = False,
    fuse: bool = True,
    context_length: int = 0,
) -> Program:
    """Compile a model whose weights lie under `root` for `backends`, best first. The model is not changed.

    `splits`: first layers of the second backend, the third and so on, where they stand in a row. `strict`: the backends
    are those that the user named, and no layer leaves its own.

    Raises Unsupported with the reasons where a node has no form in the operator set or no backend takes it,
    CompileError, IntegrityError or ContainmentError for a graph that is not what a package holds.
    """
    return _compile(model.clone(), root, Placer(backends, splits, strict), verify, fuse, context_length)


def compile_package(
    package: Package,
    backends: Sequence[Backend],
    *,
    splits: Sequence[int] = (),
    strict: bool = False,
    verify: bool = False,
    fuse: bool = True,
    graph: str = GRAPH,
    hidden: bool = False,
) -> Program:
    """Compile a package for `backends`, best first; see compile_graph. `cache.cached_program` remembers the result.

    `graph`: the file of the graph, the model's own or that of a head for speculation. `hidden`: the program also gives
    what its head reads.
    """
    root, context = package.weights_root, package.manifest.context_length
    return _compile(package.graph(graph), root, Placer(backends, splits, strict), verify, fuse, context, hidden)


def _compile(
    model: ir.Model, root: Path, placer: Placer, verify: bool, fuse: bool, context_length: int, hidden: bool = False
) -> Program:
    """The whole way; `model` is used up."""
    verify = verify or env.verify()
    draft = lower(model, root, verify)
    if hidden:
        expose_hidden.run(draft)
    for name, back in BACK + (FUSE if fuse else ()):
        back(draft, placer)
        if verify:
            check.draft(draft, after=name)
    parts, refusals = partition.partition(draft, placer)
    vocab = draft.values[draft.output].shape[-1]
    compiled = Program(
        package=str(root.absolute()),
        parts=tuple(memory.plan(part) for part in parts),
        vocab_size=vocab if isinstance(vocab, int) else 0,
        context_length=context_length,
        refusals=refusals,
    )
    check.program(compiled)  # always: native code will trust these shapes and places
    return compiled


def lower(model: ir.Model, root: Path, verify: bool = False) -> Draft:
    """The front half, in place on `model`: a draft that knows nothing of backends yet."""
    inline_functions.run(model)
    for name, front in FRONT:
        front(model.graph, root)
        if verify:
            check.graph(model.graph, after=name, lowered=name == FRONT[-1][0])
    draft = lower_graph.run(model.graph)
    if verify:
        check.draft(draft, after="lower_graph")
    return draft
