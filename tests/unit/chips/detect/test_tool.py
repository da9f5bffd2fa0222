"""Running a tool for real: bounded in time and size, whatever it does."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from datong.chips.detect.machine import Machine
from datong.chips.detect.tool import run_tool


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_it_prints() -> None:
    output = run_tool(python("import os; print(os.environ['LC_ALL'], os.environ['HOME'] != '', 'x')"))
    assert (output.state, output.text) == ("ok", "C True x\n")


def test_it_fails() -> None:
    output = run_tool(python("import sys; print('table'); sys.exit('dcmi module initialize failed. ret is -8005')"))
    assert output.state == "failed" and output.detail == "exit 1: dcmi module initialize failed. ret is -8005"


def test_it_hangs_with_children(tmp_path: Path) -> None:
    """The tool and what it started are gone afterwards."""
    note = tmp_path / "pid"
    output = run_tool(["/bin/sh", "-c", f"sleep 600 & echo $! > {note}; echo half; wait"], seconds=3.0)
    assert (output.state, output.text, output.detail) == ("hung", "half\n", "it did not end within 3 s")
    status = Path(f"/proc/{note.read_text().strip()}/status")
    for _ in range(100):  # the kernel takes a moment; whoever adopted it reaps it
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("the child of the tool is still alive")


def test_it_prints_without_end() -> None:
    output = run_tool(python("while True: print('|' * 4000)"), seconds=300.0, limit=100_000)
    assert output.state == "hung" and len(output.text) == 100_000
    assert output.detail == "it printed more than 100000 bytes"


def test_it_closes_its_output_and_stays() -> None:
    output = run_tool(["/bin/sh", "-c", "exec >&- 2>&-; sleep 600"], seconds=1.0)
    assert output.state == "hung"


def test_it_reads_nothing() -> None:
    assert run_tool(python("import sys; print(repr(sys.stdin.read()))")).text == "''\n"


def test_it_prints_bytes() -> None:
    assert run_tool(python(r"import sys; sys.stdout.buffer.write(b'\xff\n')")).text == "�\n"


@pytest.mark.parametrize("command", [["/nowhere/npu-smi"], ["a\0b"]])
def test_it_does_not_start(command: list[str]) -> None:
    output = run_tool(command)
    assert output.state == "failed" and output.detail.startswith("it could not be started: ")


def tool(directory: Path, text: str) -> None:
    directory.mkdir(exist_ok=True)
    path = directory / "xx-smi"
    path.write_text(f'#!/bin/sh\necho "$@"\necho {text}\n')
    path.chmod(0o755)


def test_no_shell_and_once_per_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path / "bin", "path")
    tool(tmp_path / "root", "root")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    calls: list[list[str]] = []

    def run(command):
        calls.append(list(command))
        return run_tool(command)

    machine = Machine(run=run)
    for _ in range(2):
        assert machine.run("xx-smi", ["$(id)", "; id"], [str(tmp_path / "root")]).text == "$(id) ; id\npath\n"
    assert len(calls) == 1
    monkeypatch.setenv("PATH", "/nowhere")
    assert machine.which("xx-smi") is None and machine.run("yy-smi", []).state == "absent"
    assert machine.run("xx-smi", ["2"], [str(tmp_path / "root")]).text == "2\nroot\n"
