"""quant_method -> reader, and the one way from a quantised checkpoint to weights of the formats of spec/formats.py.

A reader takes the object `quantization_config` and the tensors as the checkpoint stores them, and puts weights in their
place (`WeightMap.put`). Tensors that it moves to other bytes it returns, for the package to write.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datong.errors import CheckpointError, ConfigError
from datong.importer import files
from datong.importer.config import Config
from datong.importer.imported import PendingTensor
from datong.importer.quantization import compressed_tensors, fp4, fp8, int32
from datong.importer.show import show
from datong.importer.weights import WeightMap

KEY = "quantization_config"
MODELOPT = "hf_quant_config.json"

Reader = Callable[[Config, WeightMap, Path], tuple[PendingTensor, ...]]

READERS: dict[str, Reader] = {
    "awq": int32.read_awq,
    "compressed-tensors": compressed_tensors.read,
    "fp8": fp8.read,
    "gptq": int32.read_gptq,
    "modelopt": fp4.read_modelopt,
    "mxfp4": fp4.read_mxfp4,
    "mxfp8": fp8.read,
}

# How the names of scales end, in any method: such a tensor in a checkpoint whose config says nothing is half a weight.
SCALES = (".weight_scale_inv", ".weight_scale", ".weight_scale_2", ".weight_packed", ".qweight", ".qzeros", ".scales")


def apply(config: dict[str, Any], weights: WeightMap, root: Path) -> tuple[dict[str, Any], tuple[PendingTensor, ...]]:
    """Weights of the checkpoint's method in `weights`; the config without the object, and tensors to write.

    The object may stand inside that of a nested text model, or in a file of its own (modelopt). Raises ConfigError for
    a method that no reader knows, CheckpointError for a tensor that does not fit.
    """
    stated, rest = _find(config)
    stated = _beside(root) if stated is None else stated
    if stated is None:
        _refuse_scales(weights)
        return rest, ()
    model_type = str(config.get("model_type"))
    method = stated.get("quant_method") if isinstance(stated, dict) else stated
    if not isinstance(stated, dict) or not isinstance(method, str) or method not in READERS:
        raise ConfigError(
            "import",
            f"config key `{KEY}`: weights of format {show(method)} are not supported yet",
            f"known: {', '.join(READERS)}; or import the BF16 or F16 edition of the checkpoint, or a GGUF file",
        )
    settings = Config(stated, model_type, f"`{KEY}` key", {})
    settings.raw("quant_method")
    pending = READERS[method](settings, weights, root)
    settings.finish()
    return rest, pending


def _find(config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The object, and the config without it; None where the checkpoint is not quantised."""
    within, rest = None, config
    for name in ("text_config", "llm_config"):
        inner = config.get(name)
        if isinstance(inner, dict) and KEY in inner:
            within = inner[KEY]
            rest = {**config, name: {k: v for k, v in inner.items() if k != KEY}}
    stated = config.get(KEY)
    return (within if stated is None else stated), {k: v for k, v in rest.items() if k != KEY}


def _beside(root: Path) -> dict[str, Any] | None:
    """What modelopt writes into a file of its own, as earlier releases do without a word in config.json."""
    if not (root / MODELOPT).is_file():
        return None
    found = files.read_json(root, MODELOPT).get("quantization")
    return {"quant_method": "modelopt", **found} if isinstance(found, dict) else None


def _refuse_scales(weights: WeightMap) -> None:
    names = sorted((*weights.weights, *weights.unusable))
    odd = [name for name in names if name.endswith(SCALES)]
    if odd:
        more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
        raise CheckpointError(
            "import",
            f"tensor {show(odd[0])}{more} belongs to a quantised weight, the config has no `{KEY}`",
            "use the config.json that came with the weights",
        )
