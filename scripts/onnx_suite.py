#!/usr/bin/env python3
"""Write docs/reference/onnx-suite.md: the ONNX node tests on every device of the page, or on those given as arguments.

python scripts/onnx_suite.py [DEVICE …]
"""

import sys
from pathlib import Path

from datong.conformance.onnx_suite import DEVICES, collect, run_device
from datong.conformance.onnx_suite_report import markdown

tests, runs = collect(), {}
for device in sys.argv[1:] or DEVICES:
    backend, results = run_device(device, tests=tests)
    runs[device] = (backend.devices()[0].evidence, results)
page = Path(__file__).resolve().parents[1] / "docs" / "reference" / "onnx-suite.md"
page.write_text(markdown(runs), encoding="utf-8")
