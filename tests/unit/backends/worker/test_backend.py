"""A backend in a process of its own gives the same answers, and its errors and its death reach us as sentences."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datong.backends.reference import ReferenceBackend
from datong.backends.worker import RemoteBackend
from datong.conformance.ops import cases, run_cases
from datong.errors import BackendError, DeviceError, Unsupported
from datong.spec.backend import Backend, DeviceInfo, No, Yes
from datong.spec.ops import OPS
from datong.spec.program import Node, Part, Step, Value

REFERENCE = "datong.backends.reference:ReferenceBackend.with_fusions"


@pytest.fixture(scope="module")
def remote() -> Iterator[RemoteBackend]:
    backend = RemoteBackend("far", REFERENCE)
    yield backend
    backend.close()


def scaling() -> Part:
    """y = a + a, of three columns."""
    values = {
        "a": Value("a", "input", "f32", ("T", 3)),
        "y": Value("y", "temp", "f32", ("T", 3)),
    }
    return Part("far", values, (Node("add", "sum", ("a", "a"), ("y",)),), ("a",), ("y",), ())


def step(tokens: int) -> Step:
    return Step(
        ids=np.zeros(tokens, np.int64),
        positions=np.arange(tokens, dtype=np.int64),
        query_starts=np.asarray([0, tokens], np.int64),
        context_lens=np.asarray([tokens], np.int64),
        block_tables=np.zeros((1, 1), np.int32),
        rows=np.zeros(0, np.int64),
    )


def test_it_is_a_backend(remote: RemoteBackend) -> None:
    assert isinstance(remote, Backend)
    assert remote.name == "far"
    assert remote.fusions() == ReferenceBackend.with_fusions().fusions()
    assert remote.option_names == ReferenceBackend.option_names
    assert remote.whole_models_only is False
    assert [info.name for info in remote.devices()] == ["reference"]


@pytest.mark.parametrize("op", ["linear", "attention", "linear_multi"])
def test_operators_give_the_same(remote: RemoteBackend, op: str) -> None:
    results = run_cases(remote, {}, cases(lambda case: case.op == op)[:6])
    assert [r.reason for r in results if r.state != "passed"] == []


def test_arrays_cross_whole_and_can_be_written(remote: RemoteBackend) -> None:
    executable = remote.compile(scaling(), "/", {})
    a = np.arange(30000, dtype=np.float32).reshape(-1, 3)
    y = executable.run(step(10000), None, {"a": a})["y"]
    np.testing.assert_array_equal(y, a + a)
    y[:] = 0
    again = executable.run(step(10000), None, {"a": np.asfortranarray(a)})["y"]
    np.testing.assert_array_equal(again, a + a)
    assert executable.run(step(0), None, {"a": a[:0]})["y"].shape == (0, 3)


def test_many_arrays_in_one_message(remote: RemoteBackend) -> None:
    values = {f"a{i}": Value(f"a{i}", "input", "f32", ("T", 1)) for i in range(700)}
    values["y"] = Value("y", "temp", "f32", ("T", 1))
    part = Part("far", values, (Node("add", "sum", ("a0", "a699"), ("y",)),), tuple(values)[:700], ("y",), ())
    executable = remote.compile(part, "/", {})
    arrays = {f"a{i}": np.full((2, 1), i, np.float32) for i in range(700)}
    assert executable.run(step(2), None, arrays)["y"].tolist() == [[699.0], [699.0]]


def test_one_question_for_nodes_that_differ_in_names_only(
    remote: RemoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, asked = scaling(), []
    call = remote.worker.call
    monkeypatch.setattr(remote.worker, "call", lambda verb, *rest: (asked.append(verb), call(verb, *rest))[1])
    renamed = {"b": part.values["a"], "z": part.values["y"]}
    wider = {"b": Value("b", "input", "f32", ("T", 9)), "z": Value("z", "temp", "f32", ("T", 9))}
    again = Node("add", "other", ("b", "b"), ("z",))
    remote._taken.clear()
    assert isinstance(remote.supports(part.nodes[0], part.values), Yes)
    assert isinstance(remote.supports(again, renamed), Yes)
    assert asked == ["supports"]
    assert isinstance(remote.supports(again, wider), Yes)
    assert len(asked) == 2
    wrong = {**wider, "b": Value("b", "input", "f32", ("T", 4))}
    for _ in range(2):  # a refusal names the node, and is asked for each time
        assert isinstance(remote.supports(again, wrong), No)
    assert len(asked) == 4


def test_errors_cross_whole(remote: RemoteBackend) -> None:
    part = scaling()
    bad = Part("far", part.values, (Node("nonsense", "n", ("a",), ("y",)),), ("a",), ("y",), ())
    with pytest.raises(Unsupported) as here:
        ReferenceBackend().compile(bad, "/", {})
    with pytest.raises(Unsupported) as there:
        remote.compile(bad, "/", {})
    assert vars(there.value) == vars(here.value)
    assert there.value.reasons
    with pytest.raises(DeviceError, match="option `speed` is not known") as caught:
        remote.compile(part, "/", {"speed": "11"})
    assert caught.value.hint is not None


def test_an_error_that_is_not_ours_becomes_one(remote: RemoteBackend) -> None:
    executable = remote.compile(scaling(), "/", {})
    with pytest.raises(DeviceError, match=r"\[far\] the worker should carry out the call, got AttributeError"):
        executable.run(None, None, {})  # type: ignore[arg-type]
    assert executable.placement()[0].op == "add"  # the worker lives on


def test_a_factory_that_is_not_there() -> None:
    with pytest.raises(
        BackendError, match=r"`datong\.nowhere:create` should make the backend, got ModuleNotFoundError"
    ):
        RemoteBackend("far", "datong.nowhere:create").fusions()
    with pytest.raises(BackendError, match="should make a backend, made a str"):
        RemoteBackend("far", "os:getcwd").fusions()


def test_starts_when_needed_only() -> None:
    info = DeviceInfo("far", "far away", 1, "simulated")
    backend = RemoteBackend("far", REFERENCE, devices=[info])
    assert backend.devices() == [info]
    assert backend._worker is None


def test_a_dead_worker_is_a_sentence_and_the_next_one_starts_anew() -> None:
    backend = RemoteBackend("far", REFERENCE)
    executable = backend.compile(scaling(), "/", {})
    os.kill(backend.worker.pid, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"should answer `run`, it was ended by SIGKILL") as caught:
            executable.run(step(1), None, {"a": np.ones((1, 3), np.float32)})
        assert caught.value.where == "far"
    fresh = backend.compile(scaling(), "/", {})
    assert fresh.run(step(1), None, {"a": np.ones((1, 3), np.float32)})["y"].tolist() == [[2, 2, 2]]
    backend.close()
    with pytest.raises(DeviceError, match="should be running, it was closed"):
        fresh.placement()


def test_a_cache_of_another_worker_is_refused(remote: RemoteBackend) -> None:
    other = ReferenceBackend().compile(scaling(), "/", {}).create_cache(1)
    executable = remote.compile(scaling(), "/", {})
    with pytest.raises(DeviceError, match="the cache should be its own, is a ReferenceCache"):
        executable.run(step(1), other, {"a": np.ones((1, 3), np.float32)})


def test_objects_are_freed_there_with_ours_here(remote: RemoteBackend) -> None:
    executable = remote.compile(scaling(), "/", {})
    number = executable._number
    del executable
    gc.collect()
    with pytest.raises(DeviceError, match="got KeyError"):
        remote.worker.call("placement", number)


def gone(pid: int) -> bool:
    """Has the process ended? Waits for it, up to 20 s on a busy machine."""
    for _ in range(400):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_ends_with_the_last_reference() -> None:
    backend = RemoteBackend("far", REFERENCE)
    executable = backend.compile(scaling(), "/", {})
    pid = backend.worker.pid
    del backend
    gc.collect()
    assert executable.placement()  # an executable keeps its worker
    del executable
    gc.collect()
    assert gone(pid)


def test_ends_when_its_parent_is_killed() -> None:
    code = (
        "from datong.backends.worker import RemoteBackend; import time\n"
        f"b = RemoteBackend('far', '{REFERENCE}'); b.fusions(); print(b.worker.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[4])
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)


def test_a_fork_may_not_ask(remote: RemoteBackend) -> None:
    worker, owner = remote.worker, remote.worker._owner
    worker._owner = -1
    try:
        with pytest.raises(DeviceError, match="should be asked by process -1 that started it"):
            worker.call("facts")
    finally:
        worker._owner = owner


def test_an_interrupt_does_not_mix_up_answers() -> None:
    """Ctrl-C reaches a caller who waits; the worker ignores it, and the next answer belongs to the next question."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        pytest.skip("this process handles Ctrl-C in its own way")
    backend = RemoteBackend("far", REFERENCE)
    executable = backend.compile(scaling(), "/", {})
    pid = backend.worker.pid
    os.kill(pid, signal.SIGSTOP)  # so that the call waits for certain
    os.kill(pid, signal.SIGINT)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        executable.run(step(1), None, {"a": np.full((1, 3), 1, np.float32)})
    os.kill(pid, signal.SIGCONT)
    assert executable.run(step(1), None, {"a": np.full((1, 3), 5, np.float32)})["y"].tolist() == [[10, 10, 10]]
    assert backend.worker.pid == pid
    backend.close()


def test_what_a_worker_prints_goes_to_our_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    backend = RemoteBackend("far", "builtins:print", ("hello",))
    with pytest.raises(BackendError, match="made a NoneType"):
        backend.fusions()
    backend.close()
    out, err = capfd.readouterr()
    assert (out, "hello" in err) == ("", True)


def test_every_core_operator_is_claimed(remote: RemoteBackend) -> None:
    assert {op for op in OPS if OPS[op].tier == "fused"} <= remote.fusions()
