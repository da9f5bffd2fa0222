"""The tensor types of GGUF: number in the file, name, values per block, bytes per block, our format if we carry it.

Types without a format are known so that a file's layout can be checked; importing a tensor of one is refused.
Source: ggml `ggml.h` enum ggml_type, `ggml-common.h` block structs. Numbers 4, 5, 31-33, 36-38 were withdrawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from datong.spec import formats
from datong.spec.formats import Format


@dataclass(frozen=True)
class GgufType:
    """One tensor type; a row of `n` values takes `n / block * nbytes` bytes."""

    id: int
    name: str
    block: int
    nbytes: int
    format: Format | None = None


ALL: tuple[GgufType, ...] = (
    GgufType(0, "F32", 1, 4, formats.PLAIN_F32),
    GgufType(1, "F16", 1, 2, formats.PLAIN_F16),
    GgufType(2, "Q4_0", 32, 18, formats.Q4_0),
    GgufType(3, "Q4_1", 32, 20, formats.Q4_1),
    GgufType(6, "Q5_0", 32, 22, formats.Q5_0),
    GgufType(7, "Q5_1", 32, 24, formats.Q5_1),
    GgufType(8, "Q8_0", 32, 34, formats.Q8_0),
    GgufType(9, "Q8_1", 32, 40),
    GgufType(10, "Q2_K", 256, 84),
    GgufType(11, "Q3_K", 256, 110),
    GgufType(12, "Q4_K", 256, 144, formats.Q4_K),
    GgufType(13, "Q5_K", 256, 176, formats.Q5_K),
    GgufType(14, "Q6_K", 256, 210, formats.Q6_K),
    GgufType(15, "Q8_K", 256, 292),
    GgufType(16, "IQ2_XXS", 256, 66),
    GgufType(17, "IQ2_XS", 256, 74),
    GgufType(18, "IQ3_XXS", 256, 98),
    GgufType(19, "IQ1_S", 256, 50),
    GgufType(20, "IQ4_NL", 32, 18),
    GgufType(21, "IQ3_S", 256, 110),
    GgufType(22, "IQ2_S", 256, 82),
    GgufType(23, "IQ4_XS", 256, 136),
    GgufType(24, "I8", 1, 1),
    GgufType(25, "I16", 1, 2),
    GgufType(26, "I32", 1, 4),
    GgufType(27, "I64", 1, 8),
    GgufType(28, "F64", 1, 8),
    GgufType(29, "IQ1_M", 256, 56),
    GgufType(30, "BF16", 1, 2, formats.PLAIN_BF16),
    GgufType(34, "TQ1_0", 256, 54),
    GgufType(35, "TQ2_0", 256, 66),
    GgufType(39, "MXFP4", 32, 17),
    GgufType(40, "NVFP4", 64, 36),
    GgufType(41, "Q1_0", 128, 18),
)
BY_ID = {t.id: t for t in ALL}
BY_NAME = {t.name: t for t in ALL}
CARRIED = ", ".join(t.name for t in ALL if t.format)
