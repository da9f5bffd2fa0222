"""Roles, by what a graph does with a weight."""

from pathlib import Path

import pytest

from datong.compiler.pipeline import lower
from datong.package.store import resolve
from datong.quantize import source

GOLDENS = Path(__file__).resolve().parents[2] / "data" / "goldens"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def roles(family: str) -> dict[str, set[str]]:
    """Role -> last parts of the names."""
    package = resolve(GOLDENS / family)
    drafts = [lower(package.graph(name), package.weights_root) for name in package.graphs()]
    found: dict[str, set[str]] = {}
    for m in source.matrices(package, drafts):
        found.setdefault(m.role, set()).add(".".join(m.name.removesuffix(".weight").split(".")[-2:]))
    return found


@pytest.mark.parametrize("family", ["deepseek_v3", "deepseek_v32", "glm4_moe_lite"])
def test_what_makes_keys_and_values_of_latents_is_a_layer(family: str) -> None:
    assert "self_attn.kv_b_proj" in roles(family)[source.LINEAR]


def test_a_dense_model_with_tied_embedding() -> None:
    found = roles("smollm2")
    assert found[source.VOCABULARY] == {"model.embed_tokens"}
    assert found[source.LINEAR] == {f"self_attn.{x}_proj" for x in "qkvo"} | {
        f"mlp.{x}_proj" for x in ("gate", "up", "down")
    }
    assert source.GATE not in found


@pytest.mark.parametrize(
    ("family", "gates"),
    [
        ("qwen3_moe", {"mlp.gate"}),
        ("step3p5", {"moe.gate", "self_attn.g_proj"}),
        ("minimax_m2", {"block_sparse_moe.gate"}),
        ("deepseek_v32", {"mlp.gate", "indexer.weights_proj"}),
        ("qwen3_next", {"mlp.gate", "mlp.shared_expert_gate", "linear_attn.in_proj_ba"}),
    ],
)
def test_routers_gates_of_heads_and_decays_are_gates(family: str, gates: set[str]) -> None:
    found = roles(family)
    assert found[source.GATE] == gates
    assert not any(name.endswith("norm") for role in (source.LINEAR, source.EXPERTS) for name in found[role])
