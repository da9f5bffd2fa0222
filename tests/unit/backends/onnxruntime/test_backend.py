"""Whole models or nothing, and options that are checked by name."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from datong.backends.onnxruntime import create
from datong.compiler.cache import cached_program
from datong.conformance.build import PartBuilder
from datong.errors import DeviceError, Unsupported
from datong.package.create import import_checkpoint
from datong.spec.program import TOKENS

GOLDENS = Path(__file__).resolve().parents[3] / "data" / "goldens"


@pytest.fixture(scope="module")
def backend():
    return create("onnxruntime")


@pytest.fixture(scope="module")
def program(backend, tmp_path_factory):
    root = tmp_path_factory.mktemp("model") / "qwen2"
    shutil.copytree(GOLDENS / "qwen2", root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield cached_program(import_checkpoint(root), [backend])


def test_the_whole_model_is_one_part_that_knows_its_graph(program):
    (part,) = program.parts
    assert part.backend == "onnxruntime" and Path(part.graph) == Path(program.package) / "graph.onnx"
    assert not program.refusals


def test_core_operators_are_taken_and_others_refused_with_a_reason(backend):
    with PartBuilder(0) as builder:
        shape = (TOKENS, 8)
        builder.node("add", [builder.input("a", shape), builder.input("b", shape)], [("sum", shape)])
        builder.node("add_rms_norm", ["a", "b", builder.weight("w", "f32", (8,))], [("s", shape), ("y", shape)],
                     {"eps": 1e-5, "offset": 0.0})  # fmt: skip
        builder.node("add", ["a", "b"], [("odd", (TOKENS, 9))])
        answers = [backend.supports(node, builder.values) for node in builder.nodes]
    assert answers[0] and answers[0].implementation == "graph.onnx in CPUExecutionProvider"
    assert answers[1].reason == "`add_rms_norm` is formed by the compiler, graph.onnx has no such node"
    assert not answers[2] and "should be" in answers[2].reason
    assert backend.fusions() == frozenset()


def test_a_piece_of_a_model_is_refused_with_a_sentence(backend):
    with PartBuilder(0, "onnxruntime") as builder:
        shape = (TOKENS, 8)
        builder.node("add", [builder.input("a", shape), builder.input("b", shape)], [("y", shape)])
        with pytest.raises(Unsupported, match=r"a whole model with its graph\.onnx, this one is 1 nodes of one"):
            backend.compile(builder.part(["y"]), builder.package, {})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"gpu": "1"}, "option `gpu` is not known"),
        ({"cache_dtype": "i8"}, "cache_dtype should be f32, f16 or bf16, is `i8`"),
        ({"threads": "two"}, "threads should be a whole number, is `two`"),
        ({"provider_options": "[]"}, r"`provider_options` should be a JSON object of texts, it is `\[\]`"),
        ({"provider_options": '{"a": 1}'}, "should be a JSON object of texts"),
    ],
)
def test_options_are_checked(backend, program, options, text):
    with pytest.raises(DeviceError, match=text):
        backend.compile(program.parts[0], program.package, options)


def test_the_environment_gives_options_too(backend, program, monkeypatch):
    monkeypatch.setenv("DATONG_ORT_OPTIONS", "no json")
    with pytest.raises(DeviceError, match="`DATONG_ORT_OPTIONS` should be a JSON object of texts, it is `no json`"):
        backend.compile(program.parts[0], program.package, {})


def test_a_graph_that_is_another_one_or_none(backend, program, tmp_path):
    part = program.parts[0]
    with pytest.raises(DeviceError, match=r"missing\.onnx` should open, got: No such file"):
        backend.compile(replace(part, graph=str(tmp_path / "missing.onnx")), program.package, {})
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(DeviceError, match=r"CPUExecutionProvider should open `.*bad\.onnx`, got: "):
        backend.compile(replace(part, graph=str(tmp_path / "bad.onnx")), program.package, {})
    model = onnx.load(part.graph, load_external_data=False)
    model.graph.input[0].name = "tokens"
    for node in model.graph.node:
        node.input[:] = ["tokens" if name == "input_ids" else name for name in node.input]
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(DeviceError, match=r"inputs of graph\.onnx should be those of the program, `input_ids` is not"):
        backend.compile(replace(part, graph=str(tmp_path / "other.onnx")), program.package, {})


def test_every_node_is_placed(backend, program):
    part = program.parts[0]
    executable = backend.compile(part, program.package, {"threads": "1"})
    placed = executable.placement()
    assert [(p.node, p.op) for p in placed] == [(n.name, n.op) for n in part.nodes]
    by_op = {p.op: p for p in placed}
    assert by_op["linear"].implementation.endswith("CPUExecutionProvider MatMul")
    assert by_op["rms_norm"].implementation == "onnxruntime CPUExecutionProvider RMSNormalization"
    assert by_op["take_rows"].implementation == "numpy, after the graph"
    assert not any(p.elsewhere for p in placed)
    assert executable.memory()["weights_mapped"] == sum(
        np.prod(v.shape) * 4 for v in {v.pieces: v for v in part.values.values() if v.pieces}.values()
    )


def test_a_provider_that_takes_nothing_is_shown_to_take_nothing(program):
    """ONNX Runtime itself says that the session has both providers, and runs all on the CPU's."""
    azure = create("onnxruntime:AzureExecutionProvider")
    executable = azure.compile(program.parts[0], program.package, {"threads": "1"})
    moved = [p for p in executable.placement() if p.op != "take_rows"]
    assert {p.elsewhere for p in moved} == {"CPUExecutionProvider"}
    assert executable._session.get_providers()[0] == "AzureExecutionProvider"
