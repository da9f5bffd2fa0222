"""Rotary embedding: from the config's keys, in any of the spellings in use, to a table of inverse frequencies.

    transformers 5     rope_parameters: {rope_type, rope_theta, factor, …}
    transformers 4     rope_theta, rope_scaling: {rope_type, factor, …} or null
    older, hub code    rope_theta, rope_scaling: {type, factor, …}

Traps, each has been got wrong before:
- yarn also multiplies cos and sin, by 0.1 ln(factor) + 1 unless the config says otherwise.
- yarn's correction range is rounded to whole channels unless `truncate` is false.
- `dynamic` changes nothing up to max_position_embeddings; beyond it theta depends on the length of the whole prompt,
  which no cached key can follow. So such a model's context *is* max_position_embeddings.
- `original_max_position_embeddings`, where absent, is max_position_embeddings.

Arithmetic is float32 in the order of transformers `modeling_rope_utils.py`, except that powers are rounded once from
float64: vectorised float32 powers differ between machines by one unit in the last place; a package's bytes must not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from datong.importer.config import Config
from datong.importer.show import show

F32 = np.float32

_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
             "mscale_all_dim", "truncate"},
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
}  # fmt: skip


@dataclass(frozen=True)
class Rope:
    """angle[t, i] = position[t] * inv_freq[i]; cos and sin of it are multiplied by `scale`."""

    inv_freq: np.ndarray  # [rotated channels / 2] f32
    scale: float
    context_length: int  # tokens


def read_rope(
    config: Config,
    head_dim: int,
    max_position: int,
    default_theta: float = 10000.0,
    partial: float | None = None,
    axes: bool = False,
    original: int = 0,
    short_only: bool = False,
) -> Rope:
    """The rope of a model whose heads of `head_dim` channels (even) rotate all of them, or a part.

    Args:
        config: of the model.
        head_dim: channels of a head.
        max_position: the family's context.
        default_theta: where the config says nothing.
        partial: the family's share of rotated channels where the config has no `partial_rotary_factor`; None: the
            family rotates all, and a config that says otherwise is refused.
        axes: the family's positions have three axes, for images; in text they are equal, so their share is nothing.
        original: positions that longrope's short list covers, where the rope keys do not say; 0: `max_position`.
        short_only: where longrope's lists differ, use the short one and end the context where it ends.

    Raises:
        ConfigError: an unknown rope type or key, a missing or contradictory value.
    """
    parameters, theta = _parameters(config, default_theta)
    for key in ("mrope_section", "mrope_interleaved") if axes else ():
        parameters.ignore(key, "the three axes of a position are equal in text")
    head_dim = rotated_channels(config, parameters, head_dim, partial)
    kind = parameters.text("rope_type", "default")
    kind = "default" if axes and kind == "mrope" else kind
    kind = "longrope" if short_only and kind in ("su", "yarn") else kind  # what Phi-3 called it at first
    if kind not in _KEYS:
        message = f"rope type {show(kind)} is not known for model_type `{config.model_type}`"
        raise config.error(message, f"known: {', '.join(_KEYS)}")
    for key in sorted(set().union(*_KEYS.values()) - _KEYS[kind]):
        parameters.expect(key, None, f"rope type `{kind}` has no such key")
    inv_freq = default_frequencies(theta, head_dim)
    scale, context = 1.0, max_position
    if kind == "linear":
        inv_freq = inv_freq / F32(parameters.number("factor"))
    elif kind == "dynamic":
        parameters.number("factor")  # acts beyond max_position only, where we do not go
    elif kind == "llama3":
        inv_freq = _llama3(parameters, inv_freq, max_position)
    elif kind == "yarn":
        inv_freq, scale, context = _yarn(parameters, theta, head_dim, max_position)
    elif kind == "longrope":
        inv_freq, scale, context = _longrope(parameters, inv_freq, max_position, original, short_only)
    parameters.finish()
    return Rope(inv_freq, scale, context)


def score_mscale(config: Config) -> float:
    """By what yarn's `mscale_all_dim` multiplies the scores of DeepSeek's attention: (0.1 m ln(factor) + 1)^2.

    Source: transformers 5.23 `yarn_apply_mscale`; 0 counts as absent, and other rope types have none.
    """
    parameters, _ = _parameters(config, 10000.0)
    if parameters.text("rope_type", "default") != "yarn" or not parameters.raw("mscale_all_dim", None):
        return 1.0
    weight, factor = parameters.number("mscale_all_dim"), parameters.number("factor")
    return (0.1 * weight * math.log(factor) + 1.0) ** 2 if factor > 1 else 1.0


def default_frequencies(theta: float, dim: int) -> np.ndarray:
    """Return theta ** (-2i / dim) for i in [0, dim / 2): [dim / 2] f32."""
    return F32(1.0) / _powers(theta, dim)


def _powers(theta: float, dim: int) -> np.ndarray:
    """Return theta ** (2i / dim), [dim / 2] f32; base and exponent are f32 values, the power is rounded once."""
    base = float(F32(theta))
    return np.array([math.pow(base, float(F32(i) / F32(dim))) for i in range(0, dim, 2)], dtype=F32)


def _parameters(config: Config, default_theta: float) -> tuple[Config, float]:
    """The rope keys as one Config, whatever their spelling, and theta."""
    new, old = config.raw("rope_parameters", None), config.raw("rope_scaling", None)
    for key, value in (("rope_parameters", new), ("rope_scaling", old)):
        if value is not None and not isinstance(value, dict):
            raise config.error(f"config key `{key}` should be an object, it is {show(value)}")
    if new and old and new != old:
        raise config.error("config keys `rope_parameters` and `rope_scaling` contradict each other", "remove one")
    values = dict(new or old or {})
    kind = values.pop("type", None)
    if kind is not None and values.setdefault("rope_type", kind) != kind:
        raise config.error(f"rope `type` is {show(kind)} and `rope_type` is {show(values['rope_type'])}")
    parameters = Config(values, config.model_type, "rope key", {})
    theta = config.number("rope_theta", default_theta)
    inner = parameters.number("rope_theta", theta)
    if inner != theta and config.raw("rope_theta", None) is not None:
        raise config.error(f"`rope_theta` is {theta:g} and {inner:g} inside the rope parameters", "remove one")
    if inner <= 1:
        raise config.error(f"`rope_theta` should be above 1, it is {inner:g}")
    return parameters, inner


def rotated_channels(config: Config, parameters: Config, head_dim: int, partial: float | None) -> int:
    """How many channels of a head rotate; the share may stand in the config or among the rope keys."""
    if partial is None:
        for source in (config, parameters):
            source.expect("partial_rotary_factor", 1.0, "heads of this family rotate all of their channels")
        return head_dim
    outer = config.number("partial_rotary_factor", partial)
    share = parameters.number("partial_rotary_factor", outer)
    if share != outer and config.raw("partial_rotary_factor", None) is not None:
        raise config.error(
            f"`partial_rotary_factor` is {outer:g} and {share:g} inside the rope parameters", "remove one"
        )
    rotated = int(head_dim * share)
    if not 0 < rotated <= head_dim or rotated % 2:
        raise config.error(f"`partial_rotary_factor` {share:g} should give an even part of {head_dim} channels")
    return rotated


def _llama3(parameters: Config, inv_freq: np.ndarray, max_position: int) -> np.ndarray:
    """Long waves are stretched by `factor`, short ones stay, those between are mixed. [dim / 2] f32."""
    factor = F32(parameters.number("factor"))
    low, high = parameters.number("low_freq_factor"), parameters.number("high_freq_factor")
    if low >= high:
        raise parameters.error(f"rope `low_freq_factor` {low:g} should be below `high_freq_factor` {high:g}")
    original = parameters.integer("original_max_position_embeddings", max_position)
    wavelength = F32(2 * math.pi) / inv_freq
    long, short = wavelength > F32(original / low), wavelength < F32(original / high)
    stretched = np.where(long, inv_freq / factor, inv_freq)
    smooth = (F32(original) / wavelength - F32(low)) / F32(high - low)
    mixed = (F32(1) - smooth) * stretched / factor + smooth * stretched
    return np.where(~long & ~short, mixed, stretched).astype(F32)


def _yarn(parameters: Config, theta: float, dim: int, max_position: int) -> tuple[np.ndarray, float, int]:
    """Fast channels stay, slow ones are divided by `factor`, a linear ramp between: inv_freq, scale, context."""
    original = parameters.integer("original_max_position_embeddings", max_position)
    factor = parameters.number("factor", max_position / original)
    fast, slow = parameters.number("beta_fast", 32.0), parameters.number("beta_slow", 1.0)
    if fast <= slow:
        raise parameters.error(f"rope `beta_fast` {fast:g} should be above `beta_slow` {slow:g}")
    low, high = (dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (fast, slow))
    if parameters.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    high += 0.001 if low == high else 0.0  # as transformers does: no division by zero
    powers = _powers(theta, dim)
    ramp = np.clip((np.arange(dim // 2, dtype=F32) - F32(low)) / F32(high - low), F32(0), F32(1))
    keep = F32(1) - ramp
    context = int(original * factor)
    if context >= 2**31:
        raise parameters.error(f"rope: {original} positions times factor {factor:g} is more than 2^31 - 1")
    inv_freq = F32(1) / (F32(factor) * powers) * (F32(1) - keep) + F32(1) / powers * keep
    return inv_freq.astype(F32), _yarn_scale(parameters, factor), max(max_position, context)


def _longrope(
    parameters: Config, inv_freq: np.ndarray, max_position: int, original: int, short_only: bool
) -> tuple[np.ndarray, float, int]:
    """A divisor for each frequency, stated as a list for short prompts and one for long: inv_freq, scale, context.

    Keys cached for a short prompt are wrong in a long one where the lists differ: then the short one only, or none.
    """
    original = parameters.integer("original_max_position_embeddings", original or max_position)
    factor = parameters.number("factor", max_position / original)
    short, long = parameters.raw("short_factor"), parameters.raw("long_factor")
    if short != long and not short_only:
        raise parameters.error("rope type `longrope` should have equal `short_factor` and `long_factor`, they differ")
    for key, found in (("short_factor", short), ("long_factor", long)):
        numbers = isinstance(found, list) and all(type(v) in (int, float) and 0 < v < 1e30 for v in found)
        if not numbers or len(found) != len(inv_freq):
            raise parameters.error(f"rope `{key}` should be a list of {len(inv_freq)} numbers above 0")
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    context = max_position if short == long else min(original, max_position)
    return inv_freq / np.array(short, dtype=F32), parameters.number("attention_factor", scale), context


def _yarn_scale(parameters: Config, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    # 0 counts as absent, as in transformers.
    above, below = (parameters.number(k) if parameters.raw(k, None) else 0.0 for k in ("mscale", "mscale_all_dim"))
    if parameters.raw("attention_factor", None) is not None:
        return parameters.number("attention_factor")
    return mscale(above) / mscale(below) if above and below else mscale(1.0)
