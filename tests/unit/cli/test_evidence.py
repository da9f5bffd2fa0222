"""A model is as well proven as the worst of its devices."""

from types import SimpleNamespace
from typing import Any

import pytest

from datong.backends import registry
from datong.cli.evidence import MEANING, ORDER, evidence, label
from datong.spec.backend import DeviceInfo

DEVICES = {"a": "measured", "b": "simulated", "c": "not run"}


def model(*backends: str) -> Any:
    parts = [SimpleNamespace(backend=name) for name in backends]
    return SimpleNamespace(engine=SimpleNamespace(runner=SimpleNamespace(program=SimpleNamespace(parts=parts))))


@pytest.fixture(autouse=True)
def _devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend_for(name: str) -> Any:
        return SimpleNamespace(devices=lambda: [DeviceInfo(name, "", 0, DEVICES[name])])

    monkeypatch.setattr(registry, "backend_for", backend_for)


def test_the_worst_counts() -> None:
    assert evidence(model("a")) == "measured"
    assert evidence(model("a", "b", "a")) == "simulated"
    assert evidence(model("c", "b")) == "not run"


def test_measured_needs_no_label() -> None:
    assert label(model("a")) is None
    assert (label(model("a", "b")) or "").startswith("simulated: the processor computes")
    assert set(MEANING) == set(ORDER) - {"measured"}
