"""The vendors' fused operators on simulated chips, in use and switched off, against the definitions."""

from collections.abc import Iterator

import pytest

from datong.backends.registry import backend_for
from datong.conformance.ops import Case, CaseResult, cases, run_case
from datong.spec.backend import Backend

# What the placement should name, by chip and operator, where nothing stands against it. Attention: write, prefill,
# decode; "" is the composed form.
SDPA = "torch scaled_dot_product_attention"
EXPECTED = {
    "ascend-910b": {
        "rms_norm": "torch_npu.npu_rms_norm",
        "add_rms_norm": "torch_npu.npu_add_rms_norm",
        "rope": "torch_npu.npu_rotary_mul",
        "glu": "torch_npu.npu_swiglu",
        "attention": "torch_npu.npu_scatter_pa_kv_cache (write), torch_npu.npu_fused_infer_attention_score (prefill), "
        "torch_npu.npu_fused_infer_attention_score (decode)",
    },
    "biren-br2xx": {
        "rms_norm": "torch.ops._C.rms_norm",
        "add_rms_norm": "torch.ops._C.fused_add_rms_norm",
        "rope": "torch.ops._C.rotary_embedding",
        "glu": "torch.ops._C.silu_and_mul",
        "attention": "torch.ops._C_cache_ops.reshape_and_cache_flash (write), suattention.flash_attn_with_kvcache "
        "(prefill), suattention.flash_attn_with_kvcache (decode)",
    },
    "enflame-s60": {
        "rms_norm": "torch.ops._C.rms_norm",
        "add_rms_norm": "torch.ops._C.fused_add_rms_norm",
        "rope": "torch.ops._C.rotary_embedding",
        "glu": "torch.ops._C.silu_and_mul",
        "attention": "torch.ops._C_cache_ops.reshape_and_cache_flash (write), "
        "flash_attn.vllm_flash_attn.flash_attn_varlen_func (prefill), "
        "flash_attn.vllm_flash_attn.flash_attn_varlen_func (decode)",
    },
    "metax-c500": {
        "rms_norm": "torch.ops._C.rms_norm",
        "add_rms_norm": "torch.ops._C.fused_add_rms_norm",
        "rope": "torch.ops._C.rotary_embedding",
        "glu": "torch.ops._C.silu_and_mul",
        "attention": "torch.ops._C_cache_ops.reshape_and_cache (write), torch.ops._C.paged_attention_v1 (decode), "
        f"{SDPA} (rest)",
    },
    "iluvatar-bi-v150": {
        "rms_norm": "ixformer.inference.functions.rms_norm",
        "add_rms_norm": "ixformer.inference.functions.residual_rms_norm",
        "rope": "ixformer.inference.functions.vllm_rotary_embedding",
        "glu": "ixformer.inference.functions.silu_and_mul",
        "attention": "ixformer.inference.functions.vllm_reshape_and_cache (write), "
        "ixformer.contrib.vllm_flash_attn.flash_attn_varlen_func (prefill), "
        "ixformer.inference.functions.vllm_paged_attention (decode)",
    },
    "moorethreads-s5000": {
        "rms_norm": "torch.ops.aten._fused_rmsnorm_forward",
        "add_rms_norm": "torch.ops._C_musa_ops.musa_fused_add_rms_norm",
        "rope": "torch mul, addcmul",  # theirs takes angles
        "glu": "torch.ops.aten.swish_glu",
        "attention": f"torch.ops._C_musa_ops.musa_reshape_and_cache_flash_nhd (write), {SDPA} (rest)",
    },
    "biren-br1xx": {
        "rms_norm": "torch rms_norm",  # names are known, schemas are not
        "add_rms_norm": "torch add, rms_norm",
        "rope": "torch mul, addcmul",
        "glu": "torch silu, mul",
        "attention": SDPA,
    },
}
# One rounding of activations and one of results to bf16 each cost 2^-18 / 3 of nmse, twice for add_rms_norm's sum.
BF16 = 1e-4


def meant(case: Case) -> bool:
    """Cases that the composed form computes too; numbers at the end of the f32 range overflow in 16 bits."""
    p = case.params
    return not any(p.get(name) for name in ("sinks", "bias", "limit")) and p.get("values") != "special"


def few(op: str) -> list[Case]:
    """About ten cases of an operator, spread evenly."""
    found = cases(lambda case: case.op == op and meant(case) and case.params.get("kind", "silu") == "silu")
    return found[:: max(1, len(found) // 10)]


@pytest.fixture(scope="module", params=EXPECTED)
def chip(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def backend(chip: str) -> Iterator[Backend]:
    yield backend_for(f"sim:{chip}")


def close(result: CaseResult) -> bool:
    return result.nmse <= BF16


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "rope", "glu", "linear_glu", "attention"])
def test_fused_and_composed_give_the_definition(backend: Backend, chip: str, op: str) -> None:
    fused = [run_case(backend, case, {"compute_dtype": "bf16"}) for case in few(op)]
    composed = [run_case(backend, case, {"compute_dtype": "bf16", "fused": "off"}) for case in few(op)]
    assert fused and [str(r.case) + r.reason for r in (*fused, *composed) if not close(r)] == []
    names = {r.implementation.rpartition("; ")[2].removeprefix("torch ") for r in fused}
    assert EXPECTED[chip][op.removeprefix("linear_")].removeprefix("torch ") in names
    assert all(r.implementation.startswith("torch ") for r in composed)
