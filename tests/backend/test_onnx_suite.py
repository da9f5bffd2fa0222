"""The ONNX node tests on every device of the page, and the page against what runs."""

from pathlib import Path

import onnx
import pytest

from datong.conformance.onnx_suite import DEVICES, OPERATORS, NodeTest, collect, run_device
from datong.conformance.onnx_suite_report import EXPLAINED, TOTAL, cell, cells

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "onnx-suite.md"


@pytest.fixture(scope="module")
def tests() -> list[NodeTest]:
    return collect()


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_claimed_passes_and_the_page_says_so(tests, device):
    backend, results = run_device(device, tests=tests)
    failures = {r.name: r.reason for r in results if r.state == "failed"}
    expected = set(EXPLAINED) if device == "onnxruntime" else set()
    assert set(failures) == expected, "\n".join(f"{name}: {reason}" for name, reason in failures.items())
    page = PAGE.read_text(encoding="utf-8")
    assert f"onnx {onnx.__version__}" in page, "run scripts/onnx_suite.py"
    want = {op: cell([r for r in results if op in (r.op, TOTAL)]) for op in (*OPERATORS, TOTAL)}
    assert cells(page)[device] == want, f"the column of {device} is stale: run scripts/onnx_suite.py"
    evidence = next(line for line in page.splitlines() if line.startswith("| *evidence*")).split("|")
    assert evidence[3 + list(cells(page)).index(device)].strip() == backend.devices()[0].evidence
