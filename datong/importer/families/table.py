"""The table of families: `families.toml`, by hand, and `evidence.json`, which scripts/family_evidence.py measured."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from datong.errors import UnknownModel

HERE = Path(__file__).parent


class Family(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One row of families.toml."""

    maker: str
    models: str
    leaves_out: str = ""


class Compared(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One backend on one small checkpoint of a family, against reference logits."""

    evidence: str  # measured | simulated | not run
    worst: float | None = None  # largest difference of a logit: whole, in chunks, token by token, unequal batch
    why: str = ""  # where it does not run: what stops it


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`evidence.json`."""

    bound: dict[str, float]  # checkpoint -> what is asked for
    commit: str
    checkpoints: dict[str, str]  # checkpoint -> family
    results: dict[str, dict[str, Compared]]  # checkpoint -> device -> result

    def devices(self) -> list[str]:
        """Every device that was asked, in order."""
        return list(dict.fromkeys(device for row in self.results.values() for device in row))

    def of_family(self, family: str) -> list[str]:
        """Checkpoints that stand for a family."""
        return [name for name, of in self.checkpoints.items() if of == family]


@cache
def families() -> dict[str, Family]:
    """Every family, by model_type."""
    return msgspec.toml.decode((HERE / "families.toml").read_bytes(), type=dict[str, Family])


@cache
def evidence() -> Evidence:
    """What was compared when the table was made."""
    return msgspec.json.decode((HERE / "evidence.json").read_bytes(), type=Evidence)


def find(name: str) -> Family:
    """One family. Raises UnknownModel."""
    found = families().get(name)
    if found is None:
        raise UnknownModel("models", f"family `{name}` is not known", f"known: {', '.join(families())}")
    return found
