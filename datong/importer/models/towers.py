"""Text towers of models that also see images: a config around that of a text family, and other names for its tensors.

Traps, each has been got wrong before:
- positions have three axes; in text they are equal, so the rope is the ordinary one whatever `mrope_section` says.
- the same tensors have several spellings (as published, as transformers 4 and 5 save them): what the checkpoint has
  decides.
- whether the embeddings are tied stands outside; the text tower's own word counts only where the outside says nothing.
- Qwen2.5-VL as published has its text keys beside `vision_config`, not in a `text_config`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from datong.importer.config import Config
from datong.importer.models import gemma3, internlm2, internlm3, llama, qwen2, qwen3, step3_text
from datong.importer.models.decoder import Decoder, Names, Reader
from datong.importer.show import show

IMAGES = "reads images; a text package computes without it"
QWEN_KEYS = ("vision_config", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
             "vision_token_id")  # fmt: skip
STEP_KEYS = ("vision_config", "image_token_id", "projector_bias", "understand_projector_stride", "hidden_size",
             "image_token_len", "patch_token_len")  # fmt: skip
INTERN_KEYS = ("vision_config", "downsample_ratio", "image_token_id", "image_seq_length", "projector_hidden_act",
               "vision_feature_layer", "vision_feature_select_strategy", "force_image_size", "dynamic_image_size",
               "min_dynamic_patch", "max_dynamic_patch", "ps_version", "select_layer", "template", "use_thumbnail",
               "use_backbone_lora", "use_llm_lora", "pad2square", "hidden_size", "output_attentions")  # fmt: skip
GEMMA_KEYS = ("vision_config", "boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image",
              "boi_token_id", "eoi_token_id", "image_token_id")  # fmt: skip


@dataclass(frozen=True)
class Tower:
    """What lies around a text family."""

    texts: dict[str, Reader]  # model_type inside -> the family's reader
    keys: tuple[str, ...]  # config keys of images
    text: str = "text_config"
    inside: tuple[str, ...] = ("", "language_model.", "model.language_model.")  # before `model.layers…`; "" too: hub
    images: str = r"(model\.)?(visual|vision_model|vision_tower|multi_modal_projector|mlp1|vit_\w+)[.\d]"
    tied: bool = False  # where nobody says


TOWERS = {
    "qwen2_5_vl": Tower({"qwen2_5_vl_text": qwen2.read_vl, "qwen2_5_vl": qwen2.read_vl}, QWEN_KEYS),
    "qwen3_vl": Tower({"qwen3_vl_text": qwen3.read_vl, "qwen3": qwen3.read_vl}, QWEN_KEYS),
    "internvl": Tower({"qwen2": qwen2.read, "qwen3": qwen3.read, "llama": llama.read}, INTERN_KEYS),
    "internvl_chat": Tower(
        {"qwen2": qwen2.read, "qwen3": qwen3.read, "llama": llama.read, "internlm2": internlm2.read,
         "internlm3": internlm3.read}, INTERN_KEYS, "llm_config",
    ),
    "gemma3": Tower({"gemma3_text": gemma3.read}, GEMMA_KEYS, tied=True),
    "step_robotics": Tower({"qwen3": qwen3.read, "": qwen3.read}, STEP_KEYS),
    "step3_vl": Tower({"step3_text": step3_text.read, "": step3_text.read}, STEP_KEYS),
}  # fmt: skip


def reader(model_type: str) -> Reader:
    """The reader of one of `TOWERS`."""
    return lambda config: _read(config, TOWERS[model_type])


def _read(outer: Config, tower: Tower) -> Decoder:
    for key in tower.keys:
        if tower.text in outer or key != "hidden_size":
            outer.ignore(key, IMAGES)
    nested = tower.text in outer
    config = outer.inner(tower.text) if nested else outer
    for key in ("torch_dtype", "dtype") if nested else ():
        config.default(key, outer.raw(key, None))
    kind = config.raw("model_type", "")
    if kind not in tower.texts:
        known = ", ".join(name for name in tower.texts if name)
        raise outer.error(f"the text tower's model_type {show(kind)} is not known here", f"known: {known}")
    decoder = tower.texts[kind](config)
    if nested:
        config.finish()
        inner = decoder.tied if "tie_word_embeddings" in config else tower.tied
        decoder = replace(decoder, tied=outer.flag("tie_word_embeddings", inner))
    names = tuple(_under(decoder.names, prefix) for prefix in tower.inside)
    ignored = (*decoder.ignored, (tower.images, IMAGES))
    return replace(decoder, names=names[0], other_names=names[1:], ignored=ignored)


def _under(names: Names, prefix: str) -> Names:
    """As the names of a model inside another: `model.layers.` -> `language_model.model.layers.`.

    With `model.language_model.` the inner `model.` is left out, and the head stays outside: transformers 5.
    """
    if prefix == "model.language_model.":
        inner = {key: f"{prefix}{getattr(names, key).removeprefix('model.')}" for key in ("embed", "layer", "norm")}
        return replace(names, **inner)
    return replace(names, **{key: f"{prefix}{getattr(names, key)}" for key in ("embed", "layer", "norm", "head")})
