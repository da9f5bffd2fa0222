"""Does the plug-in tell the truth? What it takes is compared with the definitions, what it refuses has a reason."""

from pathlib import Path

from datong.backends.plugin import PluginBackend
from datong.conformance.ops import run_cases

LIBRARY = Path(__file__).resolve().parents[1] / "libdatong_template.so"


def test_operators() -> None:
    backend = PluginBackend(LIBRARY)
    results = run_cases(backend)
    assert backend.name == "template"
    assert [f"{r.case}: {r.reason}" for r in results if r.state == "failed"] == []
    assert all(r.reason for r in results if r.state == "refused")
    assert {r.case.op for r in results if r.state == "passed"} == {"add"}  # CHIP: yours, as they come
