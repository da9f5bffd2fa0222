"""How each operator of spec/ops.py runs on PyTorch: the table `LOWER`, one small file per group of operators.

A chip's own operator comes first where its descriptor names one (binding.py); what is here is the composed form, of
stock PyTorch operators, which runs wherever the chip's adapter covers them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from datong.backends.torch.builder import Builder, call
from datong.backends.torch.fused import bindings_for
from datong.backends.torch.lower import attention, elementwise, experts, latent, linear, norm, rope, rows, sparse, state
from datong.backends.torch.target import Target
from datong.spec.program import Node, Value


@dataclass(frozen=True)
class Lowering:
    """One operator."""

    emit: Callable[[Node, Builder], str]  # adds closures for the composed form; returns its name
    uses: tuple[str, ...]  # aten operators that the composed form may call, as a profiler names them
    stages: tuple[str, ...] = ()  # of attention: each may be the vendor's or composed, `emit` sees to it


_PRODUCT = ("aten::linear", "aten::mm", "aten::addmm")

LOWER: dict[str, Lowering] = {
    "embedding": Lowering(rows.embedding, ("aten::index_select",)),
    "take_rows": Lowering(rows.take_rows, ("aten::index_select",)),
    "linear": Lowering(linear.linear, _PRODUCT),
    "linear_multi": Lowering(linear.linear_multi, (*_PRODUCT, "aten::split_with_sizes")),
    "linear_glu": Lowering(linear.linear_glu, ("aten::linear", "aten::mm", "aten::chunk", "aten::silu", "aten::mul_")),
    "linear_add": Lowering(linear.linear_add, ("aten::linear", "aten::addmm", "aten::add_")),
    "rms_norm": Lowering(norm.rms_norm, ("aten::rms_norm",)),
    "add_rms_norm": Lowering(norm.add_rms_norm, ("aten::add", "aten::rms_norm")),
    "rope_table": Lowering(rope.rope_table, ("aten::to", "aten::mul", "aten::cos", "aten::sin")),
    "rope": Lowering(rope.rope, ("aten::cat", "aten::mul", "aten::addcmul")),
    "attention": Lowering(
        attention.attention,
        ("aten::scaled_dot_product_attention", "aten::index_select", "aten::index_put_"),
        ("attention.write", "attention.prefill", "attention.decode"),
    ),
    "select_keys": Lowering(
        sparse.select_keys, ("aten::matmul", "aten::sort", "aten::index_select", "aten::masked_fill")
    ),
    "sparse_attention": Lowering(
        sparse.sparse_attention,
        ("aten::scaled_dot_product_attention", "aten::scatter", "aten::index_select", "aten::repeat_interleave"),
    ),
    "latent_attention": Lowering(
        latent.latent_attention,
        ("aten::scaled_dot_product_attention", "aten::matmul", "aten::cat", "aten::index_select"),
    ),
    "layer_norm": Lowering(sparse.layer_norm, ("aten::layer_norm",)),
    "glu": Lowering(elementwise.glu, ("aten::silu", "aten::mul_")),
    "add": Lowering(elementwise.add, ("aten::add",)),
    "mul": Lowering(elementwise.mul, ("aten::mul",)),
    "sigmoid": Lowering(elementwise.sigmoid, ("aten::sigmoid",)),
    "scale": Lowering(elementwise.scale, ("aten::mul",)),
    "scale_groups": Lowering(elementwise.scale_groups, ("aten::mul",)),
    "moe": Lowering(experts.moe, ("aten::matmul", "aten::sum", "aten::amax")),
    "causal_conv": Lowering(state.causal_conv, ("aten::index_select", "aten::addcmul", "aten::cat")),
    "gated_delta": Lowering(
        state.gated_delta, ("aten::matmul", "aten::index_select", "aten::softplus", "aten::cumsum", "aten::exp")
    ),
    "linear_attention": Lowering(state.linear_attention, ("aten::matmul", "aten::index_select")),
    "slice": Lowering(elementwise.slice_, ("aten::reshape",)),
    "concat": Lowering(elementwise.concat, ("aten::cat",)),
}


def lower(node: Node, builder: Builder) -> str:
    """Add the closures of a node; returns what runs it."""
    row = LOWER[node.op]
    if row.stages or node.op == "rope":
        return row.emit(node, builder)
    found = builder.vendor(node.op, node)
    if found is None:
        return row.emit(node, builder)
    name, _, function = found
    kinds = {name: value.kind for name, value in builder.part.values.items()}
    sources = tuple(builder.read(n) for n in node.inputs if n and kinds[n] not in ("weight", "const"))
    builder.emit(call(sources, tuple(builder.write(n) for n in node.outputs), function))
    return name


def missing(node: Node, values: Mapping[str, Value], target: Target) -> str | None:
    """Why the composed form cannot run on the chip: an operator that the adapter lacks; None: it can, or needs not."""
    row = LOWER[node.op]
    lacking = [name for name in row.uses if name in target.missing]
    if not lacking:
        return None
    terms = target.terms(target.floats[0], target.floats[0])
    stages = row.stages or (node.op,)
    if terms is not None and all(next(bindings_for(terms, stage, node, values), None) for stage in stages):
        return None
    source = target.missing[lacking[0]]
    return f"its form in PyTorch needs `{lacking[0]}`, which does not run on this chip ({source or 'no source given'})"
