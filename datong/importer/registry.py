"""model_type -> family, and the one way from config and weights to a graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from datong.errors import CheckpointError, UnknownModel
from datong.importer.config import Config
from datong.importer.models import (
    deepseek_v3,
    deepseek_v32,
    gemma3,
    glm4,
    glm4_moe,
    glm4_moe_lite,
    gpt_oss,
    internlm2,
    internlm3,
    llama,
    minimax_m2,
    minimax_m3,
    minimax_text01,
    mistral,
    mixtral,
    neo_chat,
    phi3,
    qwen2,
    qwen3,
    qwen3_5,
    qwen3_moe,
    qwen3_next,
    step1,
    step3_text,
    step3p5,
    towers,
)
from datong.importer.models.decoder import Built, Reader, contradiction
from datong.importer.models.layers import build
from datong.importer.models.speculation import build_heads, present
from datong.importer.show import show
from datong.importer.weights import WeightMap

FAMILIES: dict[str, Reader] = {
    "deepseek_v3": deepseek_v3.read,
    "deepseek_v32": deepseek_v32.read,
    "gemma3": towers.reader("gemma3"),
    "gemma3_text": gemma3.read,
    "glm4": glm4.read,
    "glm4_moe": glm4_moe.read,
    "glm4_moe_lite": glm4_moe_lite.read,
    "gpt_oss": gpt_oss.read,
    "internlm2": internlm2.read,
    "internlm3": internlm3.read,
    "internvl": towers.reader("internvl"),
    "internvl_chat": towers.reader("internvl_chat"),
    "llama": llama.read,
    "minimax_m1": minimax_text01.read,
    "minimax_m2": minimax_m2.read,
    "minimax_m3_vl": minimax_m3.read_outer,
    "minimax_text_01": minimax_text01.read,
    "mistral": mistral.read,
    "mixtral": mixtral.read,
    "neo_chat": neo_chat.read,
    "phi3": phi3.read,
    "qwen2": qwen2.read,
    "qwen2_5_vl": towers.reader("qwen2_5_vl"),
    "qwen3": qwen3.read,
    "qwen3_5": qwen3_5.read_outer,
    "qwen3_5_moe": qwen3_5.read_moe_outer,
    "qwen3_5_moe_text": qwen3_5.read_moe,
    "qwen3_5_text": qwen3_5.read,
    "qwen3_moe": qwen3_moe.read,
    "qwen3_next": qwen3_next.read,
    "qwen3_vl": towers.reader("qwen3_vl"),
    "step1": step1.read,
    "step3_text": step3_text.read,
    "step3_vl": towers.reader("step3_vl"),
    "step3p5": step3p5.read,
    "step3p7": step3p5.read_step3p7,
    "step_robotics": towers.reader("step_robotics"),
}


def build_model(values: dict[str, Any], weights: WeightMap) -> Built:
    """The graph for a config.json's `values` over `weights`; every key and every tensor is accounted for.

    Raises:
        UnknownModel: no family has this `model_type`.
        ConfigError: a key is unknown, missing or contradictory.
        CheckpointError: a tensor is missing, misshapen or left over.
    """
    family = values.get("model_type")
    if family is None:
        raise UnknownModel("import", "config key `model_type` is missing", f"known: {', '.join(FAMILIES)}")
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnknownModel("import", f"model_type {show(family)} is not known", f"known: {', '.join(FAMILIES)}")
    config = Config(values, family)
    decoder = FAMILIES[family](config)
    config.finish()
    if wrong := contradiction(decoder):
        raise config.error(f"the config contradicts itself: {wrong}", "take config.json from the maker's release")
    spellings = (decoder.names, *decoder.other_names)
    found = (n for n in spellings if any(weights.has(f"{name}.weight") for name in (n.embed, n.norm)))
    names = next(found, decoder.names)
    decoder = replace(decoder, names=names)
    built = build(family, config, decoder, weights, hidden=bool(present(decoder, weights)))
    built = replace(built, heads=build_heads(family, decoder, weights))
    rest = sorted(weights.left_over())
    if rest:
        some = ", ".join(show(name) for name in rest[:3]) + (" …" if len(rest) > 3 else "")
        raise CheckpointError(
            "import",
            f"{len(rest)} tensors are not used by model_type `{family}`: {some}",
            "the config may say less than the weights hold: biases, layers, adapters",
        )
    return built
