"""Bindings of the vendors' operators: what they refuse and why, and how they call. Operators are recorded."""

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from datong.backends.sim import rules
from datong.backends.sim.operators import ascend, vllm
from datong.backends.torch.binding import Batch, Binding, Context, Terms
from datong.backends.torch.fused import bindings, bindings_for, candidates, refusals
from datong.chips.load import Chip, chips, find
from datong.errors import BackendError, RuleBroken
from datong.spec.program import TOKENS, Node, Value

# Rows of descriptors that no binding calls, and why.
UNBOUND = {
    "torch_npu.npu_apply_rotary_pos_emb": "queries and keys in one call, npu_rotary_mul takes one",
    "torch_npu.npu_interleave_rope": "npu_rotary_mul has both modes",
    "torch_npu.npu_quant_matmul": "quantised weights are unpacked at upload",
    "torch_npu.npu_weight_quant_batchmatmul": "quantised weights are unpacked at upload",
    "torch.ops._C.linear_quant": "quantised weights are unpacked at upload",
    "torch.ops._C.weight_only_quant": "quantised weights are unpacked at upload",
    "torch.ops._C.awq_gemm_gcu": "quantised weights are unpacked at upload",
    "torch.ops._C.gptq_gemm_gcu": "quantised weights are unpacked at upload",
    "torch.ops.aten.rope": "takes angles, a program gives cosines and sines",
    "torch.ops.aten.gated_silu": "swish_glu does the same",
    "torch.ops.aten._scaled_dot_product_attention_flash_musa": "PyTorch's own attention reaches it",
}


def terms(chip: str = "ascend-910b", dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Terms:
    return Terms(
        **{"chip": find(chip), "dtype": dtype, "cache_dtype": dtype, "block_size": 128, "layout": "nhd", **changes}
    )


def attention(heads: int = 4, kv_heads: int = 2, dim: int = 64, **attrs: Any) -> tuple[Node, Mapping[str, Value]]:
    sizes = {"q": heads * dim, "k": kv_heads * dim, "v": kv_heads * attrs.pop("value_dim", dim)}
    values = {name: Value(name, "temp", "f32", (TOKENS, n)) for name, n in sizes.items()}
    usual = {"layer": 0, "num_heads": heads, "num_kv_heads": kv_heads, "scale": 0.125, "window": 0, "softcap": 0.0}
    return Node("attention", "attention_0", ("q", "k", "v"), ("y",), {**usual, **attrs}), values


def row(op: str, inputs: Mapping[str, int], **attrs: Any) -> tuple[Node, Mapping[str, Value]]:
    values = {name: Value(name, "temp", "f32", (TOKENS, n)) for name, n in inputs.items()}
    return Node(op, f"{op}_0", tuple(inputs), ("y",), attrs), values


def binding(name: str, implements: str) -> Binding:
    return bindings()[name, implements]


# ---- the table -----------------------------------------------------------------------------------------------------


def test_every_operator_of_a_descriptor_is_bound_or_has_a_reason() -> None:
    named = {(f.name, f.implements) for chip in chips() for f in chip.stack.fused if f.schema and f.grade in "AB"}
    assert {name for name, does in named if (name, does) not in bindings()} <= set(UNBOUND)
    assert not {name for name, _ in bindings()} & set(UNBOUND)


def test_every_binding_is_of_an_operator_that_a_descriptor_names() -> None:
    named = {(f.name, f.implements) for chip in chips() for f in chip.stack.fused}
    assert set(bindings()) <= named


@pytest.mark.parametrize("chip", chips(), ids=lambda chip: chip.name)
def test_schemas_are_ones_that_pytorch_reads(chip: Chip) -> None:
    for fused in chip.stack.fused:
        if fused.schema:
            assert torch._C.parse_schema(fused.schema).name == fused.name.rpartition(".")[2]


def test_operators_without_a_schema_are_never_called() -> None:
    chip = find("biren-br1xx")
    assert [f.name for f in chip.stack.fused if f.implements == "rms_norm"]
    assert list(candidates(chip, "rms_norm")) == []


def test_two_bindings_of_one_operator_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    bindings.cache_clear()
    from datong.backends.torch.fused import vllm as own

    monkeypatch.setattr(own, "BINDINGS", (own.BINDINGS[0], own.BINDINGS[0]))
    with pytest.raises(BackendError, match=r"`torch\.ops\._C\.rms_norm` should be bound once"):
        bindings()
    monkeypatch.undo()
    bindings.cache_clear()


def test_an_operator_that_the_adapter_lacks_is_told() -> None:
    node, values = row("rms_norm", {"x": 64, "w": 64}, eps=1e-5, offset=0.0)
    assert list(bindings_for(terms(), "rms_norm", node, values)) == []
    assert refusals(terms(), "rms_norm", node, values) == [
        ("torch_npu.npu_rms_norm", "`torch_npu.npu_rms_norm` is not in the adapter")
    ]


# ---- refusals ------------------------------------------------------------------------------------------------------

FIA = "torch_npu.npu_fused_infer_attention_score"
V1 = "torch.ops._C.paged_attention_v1"


@pytest.mark.parametrize(
    ("name", "stage", "change", "attrs", "reason"),
    [
        (FIA, "prefill", {"dtype": torch.float32}, {}, "takes float16 or bfloat16, activations are float32"),
        (FIA, "prefill", {"cache_dtype": torch.float16}, {}, "takes a cache of the activations' type, it is float16"),
        (FIA, "prefill", {"layout": "hnd"}, {}, "reads a cache of layout `nhd`, this one is `hnd`"),
        (FIA, "prefill", {"block_size": 64}, {}, "takes blocks of 128 to 512 tokens in steps of 128"),
        (FIA, "decode", {"block_size": 64}, {}, None),
        (FIA, "decode", {"block_size": 8}, {}, "takes blocks of 16 to 512 tokens in steps of 16, this cache has 8"),
        (FIA, "decode", {}, {"dim": 72}, "takes head sizes up to 512 in steps of 16, this one is 72"),
        (FIA, "decode", {}, {"value_dim": 128}, "takes keys and values of one head size, they have 64 and 128"),
        (FIA, "decode", {}, {"heads": 130, "kv_heads": 2}, "takes up to 256 heads, 64 for each of keys"),
        (FIA, "prefill", {}, {"window": 7}, "has no way to say a window of 7 tokens that its documents make clear"),
        (FIA, "prefill", {}, {"softcap": 50.0}, "has no softcap"),
        (FIA, "prefill", {}, {"bias": "alibi"}, "has neither sinks nor slopes that its documents make clear"),
        (V1, "decode", {"layout": "metax_paged", "block_size": 16}, {}, None),
        (V1, "decode", {}, {}, "reads a cache of layout `metax_paged`, this one is `nhd`"),
        (V1, "decode", {"layout": "metax_paged"}, {"dim": 72}, "takes heads of 32, 64, 80, 96, 112, 120"),
        ("suattention.flash_attn_with_kvcache", "decode", {"block_size": 16}, {}, "takes blocks of 128 to 128 tokens"),
        ("suattention.flash_attn_with_kvcache", "decode", {}, {"window": 8}, None),
        ("suattention.flash_attn_with_kvcache", "decode", {}, {"softcap": 2.0}, "has no softcap"),
        ("flash_attn.flash_attn_with_kvcache", "decode", {}, {"softcap": 2.0, "window": 8}, None),
    ],
)  # fmt: skip
def test_attention_is_refused_with_the_reason(
    name: str, stage: str, change: dict[str, Any], attrs: dict[str, Any], reason: str | None
) -> None:
    node, values = attention(**attrs)
    answer = binding(name, f"attention.{stage}").refuse(node, values, terms(**change))
    assert answer is None if reason is None else str(answer).startswith(reason)


@pytest.mark.parametrize(
    ("kind", "limit", "reason"),
    [("silu", 0.0, None), ("gelu_tanh", 0.0, "this is gelu_tanh"), ("silu", 7.0, "this is silu with the limit 7")],
)
@pytest.mark.parametrize("name", [name for name, does in bindings() if does == "glu"])
def test_only_silu_goes_to_a_gated_silu(name: str, kind: str, limit: float, reason: str | None) -> None:
    node, values = row("glu", {"gate": 8, "up": 8}, kind=kind, limit=limit)
    answer = binding(name, "glu").refuse(node, values, terms())
    assert answer is None if reason is None else str(answer).endswith(reason)


def test_rope_of_part_of_a_head_is_refused_where_whole_heads_are_rotated() -> None:
    node, values = row("rope", {"x": 4 * 64, "cos": 16, "sin": 16}, num_heads=4, interleaved=0)
    reason = "rotates whole heads, here 32 of 64 channels"
    assert binding("torch_npu.npu_rotary_mul", "rope").refuse(node, values, terms()) == reason
    assert binding("torch.ops._C.rotary_embedding", "rope").refuse(node, values, terms()) is None


# ---- calls ---------------------------------------------------------------------------------------------------------


class Recorder:
    """Stands for a vendor's operator; keeps the arguments."""

    def __init__(self, answer: Any) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._answer = answer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        return self._answer(*args, **kwargs)


def context(operator: Any, values: Mapping[str, Value], weight: torch.Tensor | None = None, **changes: Any) -> Context:
    own = vars(terms(**changes))
    return Context(**own, operator=operator, values=values, weight=lambda name, dtype=None: weight)


def batch(new: list[int], contexts: list[int]) -> Batch:
    starts = torch.tensor([0, *torch.tensor(new).cumsum(0).tolist()], dtype=torch.int32)
    tables = torch.zeros((len(new), 2), dtype=torch.int32)
    slots = torch.zeros(sum(new), dtype=torch.int64)
    lens = torch.tensor(contexts, dtype=torch.int32)
    return Batch(len(new), sum(new), tuple(new), tuple(contexts), starts, lens, tables, slots, slots, slots)


def fia(new: list[int], contexts: list[int]) -> Recorder:
    """The calls of one prefill."""
    node, values = attention()
    recorder = Recorder(lambda q, *rest, **options: (torch.zeros_like(q), None))
    call = binding(FIA, "attention.prefill").make(node, context(recorder, values))
    n, cache = sum(new), torch.zeros((3, 128, 2, 64), dtype=torch.bfloat16)
    query, key = torch.zeros((n, 4, 64), dtype=torch.bfloat16), torch.zeros((n, 2, 64), dtype=torch.bfloat16)
    assert call(query, key, key, cache, cache, batch(new, contexts)).shape == (n, 4, 64)
    return recorder


def test_ascend_takes_sequences_of_one_length_in_one_call() -> None:
    ((args, options),) = fia([3, 3], [3, 200]).calls
    assert args[0].shape == (2, 3, 4, 64) and args[1].shape == (3, 128, 128)
    assert options["actual_seq_lengths"] == [3, 3] and options["actual_seq_lengths_kv"] == [3, 200]
    assert options["sparse_mode"] == 3 and options["atten_mask"].shape == (2048, 2048)


def test_ascend_takes_sequences_of_different_lengths_one_by_one() -> None:
    calls = fia([3, 1, 2], [3, 9, 200]).calls
    assert [call[0][0].shape[1] for call in calls] == [3, 1, 2]
    assert [call[1]["actual_seq_lengths_kv"] for call in calls] == [[3], [9], [200]]
    assert ["atten_mask" in call[1] for call in calls] == [True, False, True]  # one query takes no mask


@pytest.mark.parametrize(("dying", "same"), [(frozenset({"a", "b"}), True), (frozenset(), False)])
def test_what_is_read_again_is_not_overwritten(dying: frozenset[str], same: bool) -> None:
    node, values = row("add_rms_norm", {"a": 8, "b": 8, "w": 8}, eps=1e-5, offset=0.0)
    bound = binding("torch.ops._C.fused_add_rms_norm", "add_rms_norm")
    recorder = Recorder(lambda *args: vllm.fused_add_rms_norm(
        input=args[0], residual=args[1], weight=args[2], epsilon=args[3]))  # fmt: skip
    a, b = torch.randn(3, 8), torch.randn(3, 8)
    before = a.clone(), b.clone()
    made = bound.make(node, context(recorder, values, torch.ones(8), dtype=torch.float32, dying=dying))
    total, y = made(a, b)
    torch.testing.assert_close(total, before[0] + before[1])
    torch.testing.assert_close(y, torch.nn.functional.rms_norm(total, (8,), eps=1e-5))
    assert (total is b and y is a) is same
    assert same or (torch.equal(a, before[0]) and torch.equal(b, before[1]))


def test_in_place_operators_are_refused_where_copies_would_cost_more() -> None:
    node, values = row("add_rms_norm", {"a": 64, "b": 64, "w": 64}, eps=1e-5, offset=0.0)
    bound = binding("torch.ops._C.fused_add_rms_norm", "add_rms_norm")
    assert bound.refuse(node, values, terms(dying=frozenset({"a"}))) == "works in place, and `b` is read again"
    assert bound.refuse(node, values, terms(dying=frozenset({"a", "b"}))) is None


def test_scales_are_tensors_where_the_schema_wants_tensors() -> None:
    node, values = attention()
    name = "torch.ops._C_cache_ops.reshape_and_cache"
    key, cache = torch.zeros((1, 2, 64)), (torch.zeros((2, 2, 16, 64, 4)), torch.zeros((2, 2, 64, 64)))
    for chip, kind in (("enflame-s60", float), ("metax-c500", torch.Tensor)):
        recorder = Recorder(lambda *args: None)
        changes = {"chip": chip, "dtype": torch.float32, "layout": "metax_paged"}
        call = binding(name, "attention.write").make(node, context(recorder, values, **changes))
        call(key, key, *cache, batch([1], [1]))
        schema = next(f.schema for f in find(chip).stack.fused if f.name == name)
        ((args, _),) = recorder.calls
        given = dict(zip([a.name for a in torch._C.parse_schema(schema).arguments], args, strict=True))
        assert isinstance(given["k_scale"], kind) and float(given["k_scale"]) == 1.0


# ---- the simulated operators' own checks ---------------------------------------------------------------------------


@pytest.fixture
def ascend_rules() -> Iterator[None]:
    before = list(rules._here)
    rules.install(rules.Rules("sim:ascend-910b", find("ascend-910b")))
    yield
    rules._here[:] = before


def paged(**changes: Any) -> Any:
    """One decode call that the documentation allows, with changes."""
    cache = torch.zeros((2, 128, 2 * 64), dtype=torch.float16)
    usual: dict[str, Any] = {
        "query": torch.zeros((1, 1, 4, 64), dtype=torch.float16), "key": cache, "value": cache, "atten_mask": None,
        "actual_seq_lengths": None, "actual_seq_lengths_kv": [130], "num_heads": 4, "scale": 0.125,
        "block_table": torch.tensor([[1, 0]], dtype=torch.int32), "input_layout": "BSND", "num_key_value_heads": 2,
        "sparse_mode": 0, "block_size": 128, "softmax_lse_flag": False,
    }  # fmt: skip
    return ascend.npu_fused_infer_attention_score(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"actual_seq_lengths_kv": [300]}, "should have a block table of at least [1, 3], it is [1, 2]"),
        ({"block_table": torch.tensor([[1, 7]], dtype=torch.int32)}, "should have a block table of blocks 0 to 1"),
        ({"block_size": 64}, "should have cache blocks of 128 tokens"),
        ({"num_key_value_heads": 4}, "should have query [B, S, N, D] and key, value"),
        ({"query": torch.zeros((1, 1, 4, 64))}, "should have query of type float16 or bfloat16"),
        ({"query": torch.zeros((1, 2, 4, 64), dtype=torch.float16), "sparse_mode": 3}, "should have a mask of 2048"),
        ({"pre_tokens": 5}, "should have only the options that are simulated, it has pre_tokens"),
        ({"input_layout": "TND"}, "should be the paged call that this simulation has"),
    ],
)
def test_the_simulated_attention_checks_what_its_documents_demand(
    ascend_rules: None, changes: dict[str, Any], sentence: str | None
) -> None:
    if sentence is None:
        assert paged(**changes)[0].shape == (1, 1, 4, 64)
        return
    with pytest.raises(RuleBroken) as error:
        paged(**changes)
    assert f"`{FIA}` {sentence}" in str(error.value)


def test_explain_shows_why_a_vendors_operator_was_not_taken() -> None:
    from datong.compiler.explain import explain, explain_data
    from datong.spec.backend import Placed

    program: Any = SimpleNamespace(parts=(), refusals=(), fallbacks=(), wanted=())
    placed = [
        Placed(f"attention_{i}", "attention", "torch x", unused=(f"{FIA}: has no softcap",) * 2) for i in range(3)
    ]
    rows = explain_data(program, placed=placed)["unused"]
    assert rows == [{"op": "attention", "reason": f"{FIA}: has no softcap", "count": 3}]
    assert f"  attention x3: {FIA}: has no softcap" in explain(program, placed=placed)
