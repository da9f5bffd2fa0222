"""Plug-ins in C: a foreign one loads and runs, broken ones are errors with a name, bad input never crashes."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datong.backends.cpu import create, library_path
from datong.backends.plugin import PluginBackend
from datong.conformance.build import PartBuilder
from datong.errors import AbiMismatch, BackendMissing, DatongError, DeviceError, DtypeError, ShapeError, Unsupported
from datong.spec.backend import API_VERSION, Backend, No, Yes
from datong.spec.program import TOKENS, CacheSpec, Node, Part, Slot, Step, Value

NATIVE = Path(__file__).parents[3] / "native"
CPU = create()


def _cc(source: Path, target: Path) -> Path:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or "cc"
    flags = ["-std=c11", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I", NATIVE / "include"]
    subprocess.run([compiler, *flags, source, "-o", target], check=True)
    return target


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _cc(NATIVE / "plugin/example/example.c", tmp_path_factory.mktemp("plugin") / "libexample.so")


def _step(tokens: int, sequences: int = 0, **changes: np.ndarray) -> Step:
    """`tokens` new tokens, in one sequence with blocks 0, 1, … or in none."""
    step = Step(
        ids=np.zeros(tokens, np.int64),
        positions=np.arange(tokens, dtype=np.int64),
        query_starts=np.array([0, tokens] if sequences else [0], np.int64),
        context_lens=np.array([tokens] if sequences else [], np.int64),
        block_tables=np.arange(4 * sequences, dtype=np.int32).reshape(sequences, 4),
        rows=np.zeros(0, np.int64),
    )
    return replace(step, **changes)


# ---- a foreign plug-in ------------------------------------------------------------------------------------------


def test_example_is_a_backend(example: Path) -> None:
    backend = PluginBackend(example)
    assert isinstance(backend, Backend)
    assert (backend.name, backend.api_version, backend.fusions()) == ("example", API_VERSION, frozenset())
    (device,) = backend.devices()
    assert (device.name, device.evidence) == ("example", "not run")


def test_example_adds_and_refuses_the_rest(example: Path) -> None:
    backend = PluginBackend(example)
    with PartBuilder(1) as b:
        x, y = b.input("x", (TOKENS, 3)), b.input("y", (TOKENS, 3))
        s = b.node("add", [x, y], [("s", (TOKENS, 3))])
        part = b.part([b.node("add", [s, y], [("t", (TOKENS, 3))])])
        assert backend.supports(part.nodes[0], part.values) == Yes("example_add")
        program = backend.compile(part, b.package, {})
        assert [p.implementation for p in program.placement()] == ["example_add"] * 2
        arrays = {"x": np.ones((2, 3), np.float32), "y": np.full((2, 3), 10, np.float32)}
        assert program.run(_step(2), None, arrays)["t"].tolist() == [[21.0] * 3] * 2
        with pytest.raises(Unsupported, match="no caches"):
            program.create_cache(1)
        mul = b.node("mul", [x, y], [("m", (TOKENS, 3))])
        part = b.part([mul])
        assert backend.supports(part.nodes[2], part.values) == No("the example knows only add")
        with pytest.raises(Unsupported) as refused:
            backend.compile(part, b.package, {})
        assert refused.value.reasons == [(part.nodes[2].name, "the example knows only add")]


# ---- broken plug-ins --------------------------------------------------------------------------------------------

_BROKEN = {
    "nothing": ("int other(void) { return 1; }", BackendMissing, "does not export datong_backend_get_api"),
    "null": (
        "const dt_api* datong_backend_get_api(int32_t a, int32_t b) { (void)a; (void)b; return 0; }",
        AbiMismatch,
        r"does not speak version 1\.3",
    ),
    "major": (
        'static dt_api t = {.struct_size = sizeof t, .major = 7, .minor = 2, .name = "x"};'
        "const dt_api* datong_backend_get_api(int32_t a, int32_t b) { (void)a; (void)b; return &t; }",
        AbiMismatch,
        r"speaks version 7\.2 of the backend interface, 1\.3 is wanted",
    ),
    "short": (
        "static dt_api t = {.struct_size = 8, .major = 1};"
        "const dt_api* datong_backend_get_api(int32_t a, int32_t b) { (void)a; (void)b; return &t; }",
        AbiMismatch,
        "function table of 8 bytes",
    ),
    "incomplete": (
        'static dt_api t = {.struct_size = sizeof t, .major = 1, .name = "x"};'
        "const dt_api* datong_backend_get_api(int32_t a, int32_t b) { (void)a; (void)b; return &t; }",
        AbiMismatch,
        "lacks the required function `error_code`",
    ),
}


@pytest.mark.parametrize("name", _BROKEN)
def test_broken_plugins_have_a_reason(name: str, tmp_path: Path) -> None:
    text, error, message = _BROKEN[name]
    source = tmp_path / "broken.c"
    source.write_text(f'#include "datong/backend.h"\n{text}\n')
    with pytest.raises(error, match=message) as raised:
        PluginBackend(_cc(source, tmp_path / "libbroken.so"))
    assert "libbroken.so" in str(raised.value) and raised.value.hint


def test_not_a_library(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("not a library")
    for path in (text, tmp_path / "absent.so", tmp_path):
        with pytest.raises(BackendMissing, match="cannot be loaded"):
            PluginBackend(path)


def test_library_exports_one_symbol() -> None:
    out = subprocess.run(["nm", "-D", "--defined-only", library_path()], check=True, capture_output=True, text=True)
    assert [line.split()[-1] for line in out.stdout.splitlines()] == ["datong_backend_get_api"]


# ---- the CPU plug-in: questions -----------------------------------------------------------------------------------


def _values(*rows: tuple[str, str, tuple[int | str, ...]]) -> dict[str, Value]:
    return {name: Value(name, kind, "f32", shape, "f32" if kind == "weight" else "") for name, kind, shape in rows}


_X = ("x", "input", (TOKENS, 8))
_Y = ("y", "temp", (TOKENS, 8))
_HEADS = {"layer": 0, "num_heads": 2, "num_kv_heads": 2, "scale": 1.0}


@pytest.mark.parametrize(
    ("node", "values", "reason"),
    [
        (Node("convolve", "c", ("x",), ("y",)), _values(_X, _Y), "no such operator"),
        (Node("add", "a", ("x",), ("y",)), _values(_X, _Y), "has 1 inputs, 2 to 2 are wanted"),
        (Node("add", "a", ("x", ""), ("y",)), _values(_X, _Y), "lacks input 1"),
        (
            Node("add", "a", ("x", "z"), ("y",)),
            _values(_X, _Y, ("z", "input", (TOKENS, 9))),
            "wants width 8 for input 1",
        ),
        (Node("add", "a", ("x", "x"), ("y",)), _values(_X, ("y", "temp", (TOKENS, 9))), "is declared [T, 9]"),
        (
            Node("glu", "g", ("x", "x"), ("y",), {"kind": "gelu"}),
            _values(_X, _Y),
            "silu, gelu_tanh, silu_clamp and oai are known",
        ),
        (Node("glu", "g", ("x", "x"), ("y",)), _values(_X, _Y), "lacks the text attribute `kind`"),
        (Node("linear", "l", ("x", "w"), ("y",)), _values(_X, _Y, ("w", "weight", (8, 9))), "matrix of 9 columns"),
        (Node("linear", "l", ("x", "x"), ("y",)), _values(_X, _Y), "wants a weight matrix as input 1"),
        (Node("rms_norm", "n", ("x", "w"), ("y",), {"eps": 0.0}), _values(_X, _Y, ("w", "weight", (8,))), "eps > 0"),
        (
            Node("rms_norm", "n", ("x", "w"), ("y",), {"eps": 1.0}),
            _values(_X, _Y, ("w", "weight", (3,))),
            "does not divide",
        ),
        (Node("rope", "r", ("x", "x", "x"), ("y",), {"num_heads": 3}), _values(_X, _Y), "does not divide its row"),
        (
            Node("attention", "t", ("x", "x", "x"), ("y",), {**_HEADS, "num_kv_heads": 3}),
            _values(_X, _Y),
            "num_kv_heads",
        ),
        (Node("attention", "t", ("x", "x", "x"), ("y",), {**_HEADS, "window": -1}), _values(_X, _Y), "window >= 0"),
        (
            Node("slice", "s", ("x",), ("y",), {"group": 4, "start": 3, "length": 2}),
            _values(_X, _Y),
            "outside its group",
        ),
        (Node("add", "a", ("x", "x"), ("y",), {"list": (1, 2)}), _values(_X, _Y), "is a list"),
    ],
    ids=lambda value: value if isinstance(value, str) else getattr(value, "op", ""),
)
def test_every_no_has_a_reason(node: Node, values: dict[str, Value], reason: str) -> None:
    answer = CPU.supports(node, values)
    assert isinstance(answer, No) and reason in answer.reason


def test_unknown_weight_format_is_refused() -> None:
    values = {**_values(_X, _Y), "w": Value("w", "weight", "f32", (8, 8), "q3_x")}
    answer = CPU.supports(Node("linear", "l", ("x", "w"), ("y",)), values)
    assert isinstance(answer, No) and "format `q3_x`, which no kernel reads" in answer.reason


# ---- the CPU plug-in: bad parts -----------------------------------------------------------------------------------


@pytest.fixture
def linear() -> Iterator[tuple[PartBuilder, Part]]:
    with PartBuilder(2) as b:
        x = b.input("x", (TOKENS, 64))
        yield b, b.part([b.node("linear", [x, b.weight("w", "q4_1", (8, 64))], [("y", (TOKENS, 8))])])


def _with(part: Part, name: str, **changes: object) -> Part:
    return replace(part, values={**part.values, name: replace(part.values[name], **changes)})


def test_damaged_weights_are_refused(linear: tuple[PartBuilder, Part]) -> None:
    b, part = linear
    codes, *others = part.values["w"].pieces
    bad = {
        "weight bytes": replace(codes, offset=10**6),
        r"weight bytes -5 \+ 256": replace(codes, offset=-5),
        "has 100 bytes, its shape wants 256": replace(codes, length=100),
        "has dtype": replace(codes, dtype="i4"),
        "lacks the piece codes": replace(codes, role="scale"),
        "cannot be opened": replace(codes, file="absent.safetensors"),
        "not an ordinary file": replace(codes, file="."),
    }
    for message, piece in bad.items():
        with pytest.raises(DeviceError, match=message):
            CPU.compile(_with(part, "w", pieces=(piece, *others)), b.package, {})


def test_damaged_parts_are_refused(linear: tuple[PartBuilder, Part]) -> None:
    b, part = linear
    slots = part.slots
    bad = {
        "nothing before it makes": replace(part, inputs=()),
        "is made by no node": replace(part, nodes=()),
        "lies outside its arena": replace(part, slots={"y": replace(slots["y"], offset=64)}),
        "too small, negative": replace(part, slots={"y": Slot(TOKENS, 0, 16)}),
        "made twice": replace(part, nodes=(*part.nodes, replace(part.nodes[0], name="again"))),
        "not positive or too large": _with(part, "x", shape=(TOKENS, 1 << 62)),
        "is of another kind": replace(part, inputs=("y",)),
    }
    for message, broken in bad.items():
        with pytest.raises(DeviceError, match=message):
            CPU.compile(broken, b.package, {})


def test_options_are_checked(linear: tuple[PartBuilder, Part]) -> None:
    b, part = linear
    bad = {
        "threads": "0",
        "isa": "sse9",
        "cache_dtype": "f64",
        "max_tokens": "-1",
        "max_rows": "many",
        "activations": "bf8",
        "colour": "red",
    }
    for key, value in bad.items():
        with pytest.raises(DeviceError, match=f"option.*{key}"):
            CPU.compile(part, b.package, {key: value})


def test_unplanned_temps_get_their_own_place(linear: tuple[PartBuilder, Part]) -> None:
    b, part = linear
    x = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    planned = CPU.compile(part, b.package, {}).run(_step(3), None, {"x": x})["y"].copy()
    free = CPU.compile(replace(part, slots={}, arena_bytes={}), b.package, {})
    assert np.array_equal(free.run(_step(3), None, {"x": x})["y"], planned)


def test_weights_are_mapped_not_copied(linear: tuple[PartBuilder, Part]) -> None:
    b, part = linear
    memory = CPU.compile(part, b.package, {"weights": "mapped"}).memory()
    assert memory["weights_mapped"] == sum(piece.length for piece in part.values["w"].pieces)
    assert memory["weights_private"] == 0
    maps = Path("/proc/self/maps")
    if sys.platform == "linux" and maps.exists():
        program = CPU.compile(part, b.package, {"weights": "mapped"})
        lines = [line for line in maps.read_text().splitlines() if b.package in line]
        assert len(lines) == 1 and " r--s " in lines[0]
        del program
        assert b.package not in maps.read_text()


# ---- the CPU plug-in: bad steps -----------------------------------------------------------------------------------


def test_arrays_must_be_what_step_says(linear: tuple[PartBuilder, Part]) -> None:
    b, part = linear
    program = CPU.compile(part, b.package, {"max_tokens": "4"})
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(DtypeError, match="`ids` should be a NumPy array of int64, int32 came"):
        program.run(_step(2, ids=np.zeros(2, np.int32)), None, {"x": x})
    with pytest.raises(DtypeError, match="`x` should be a NumPy array of float32, float64 came"):
        program.run(_step(2), None, {"x": x.astype(np.float64)})
    with pytest.raises(ShapeError, match="`x` should be C-contiguous"):
        program.run(_step(2), None, {"x": np.zeros((64, 2), np.float32).T})
    with pytest.raises(ShapeError, match="input `x` of the part is wanted"):
        program.run(_step(2), None, {})
    with pytest.raises(DeviceError, match="same length"):
        program.run(_step(2, positions=np.zeros(3, np.int64)), None, {"x": x})
    with pytest.raises(DeviceError, match="another dtype or size"):
        program.run(_step(3), None, {"x": x})
    with pytest.raises(DeviceError, match="max_tokens is 4"):
        program.run(_step(5), None, {"x": np.zeros((5, 64), np.float32)})


def test_steps_may_grow_and_shrink(linear: tuple[PartBuilder, Part]) -> None:
    b, part = linear
    program = CPU.compile(part, b.package, {})
    x = np.random.default_rng(1).standard_normal((300, 64)).astype(np.float32)
    whole = program.run(_step(300), None, {"x": x})["y"].copy()
    for n in (1, 0, 17, 300, 2):
        y = program.run(_step(n), None, {"x": x[:n]})["y"]
        assert y.shape == (n, 8) and np.allclose(y, whole[:n], atol=1e-4)


def test_outputs_outlive_the_executable(linear: tuple[PartBuilder, Part]) -> None:
    b, part = linear
    y = CPU.compile(part, b.package, {}).run(_step(2), None, {"x": np.ones((2, 64), np.float32)})["y"]
    assert np.isfinite(y).all() and y.base is not None


def test_ids_and_rows_out_of_range() -> None:
    with PartBuilder(2) as b:
        ids = b.input("ids", (TOKENS,), "i64")
        part = b.part([b.node("embedding", [ids, b.weight("w", "f32", (8, 4))], [("y", (TOKENS, 4))])])
        program = CPU.compile(part, b.package, {})
        for bad in (8, -1, 2**62):
            with pytest.raises(DeviceError, match=rf"token ids lie in 0 \.\. 7, id {bad} came at place 1"):
                program.run(_step(2, ids=np.array([0, bad])), None, {})
    with PartBuilder(2) as b:
        x, rows = b.input("x", (TOKENS, 4)), b.input("rows", ("R",), "i64")
        part = b.part([b.node("take_rows", [x, rows], [("y", ("R", 4))])])
        program = CPU.compile(part, b.package, {})
        with pytest.raises(DeviceError, match="row 2 was asked for, the step has 2 tokens"):
            program.run(_step(2, rows=np.array([0, 2])), None, {"x": np.zeros((2, 4), np.float32)})


@pytest.fixture
def attention() -> Iterator[tuple[PartBuilder, Part]]:
    with PartBuilder(2) as b:
        q, k, v = (b.input(name, (TOKENS, 16)) for name in "qkv")
        b.caches.append(CacheSpec(0, "full", 2, 8, 8))
        yield b, b.part([b.node("attention", [q, k, v], [("y", (TOKENS, 16))], _HEADS)])


def test_bad_block_tables_are_errors(attention: tuple[PartBuilder, Part]) -> None:
    b, part = attention
    program = CPU.compile(part, b.package, {})
    cache = program.create_cache(2)
    size = cache.layout.block_size
    n = size + 1
    arrays = {name: np.ones((n, 16), np.float32) for name in "qkv"}
    table = np.array([[0, 1]], np.int32)
    good = _step(n, 1, block_tables=table)
    assert np.array_equal(program.run(good, cache, arrays)["y"], np.ones((n, 16), np.float32))
    bad = {
        "is 2, the cache has blocks 0 .. 1": {"block_tables": np.array([[0, 2]], np.int32)},
        "block 1 of sequence 0 is -1": {"block_tables": np.array([[0, -1]], np.int32)},
        "its block table covers": {"block_tables": np.array([[0]], np.int32)},
        "a context of 5": {"context_lens": np.array([5])},
        "query_starts run from 0": {"query_starts": np.array([0, 3])},
        "S \\+ 1 query_starts": {"query_starts": np.array([0, 3, n])},
        "are not in order": {
            "query_starts": np.array([0, n + 1, n]),
            "context_lens": np.array([2 * n, n]),
            "block_tables": np.zeros((2, 4), np.int32),
        },
        "tokens and no sequences": {
            "query_starts": np.array([0]),
            "context_lens": np.zeros(0, np.int64),
            "block_tables": np.zeros((0, 1), np.int32),
        },
    }
    for message, changes in bad.items():
        with pytest.raises(DeviceError, match=message):
            program.run(replace(good, **changes), cache, arrays)
    with pytest.raises(DeviceError, match="without a cache"):
        program.run(good, None, arrays)
    with pytest.raises(DeviceError, match="belongs to another program"):
        program.run(good, CPU.compile(part, b.package, {}).create_cache(2), arrays)
    for source, target in ((0, 2), (-1, 0)):
        with pytest.raises(DeviceError, match="the cache has 2"):
            cache.copy_block(source, target)


def test_cache_sizes(attention: tuple[PartBuilder, Part]) -> None:
    b, part = attention
    program = CPU.compile(part, b.package, {"cache_dtype": "bf16"})
    layout = program.create_cache(1).layout
    # 2 heads x (8 key + 16 value channels, values padded to a vector) x 2 bytes
    assert (layout.dtype, layout.bytes_per_block) == ("bf16", layout.block_size * 2 * (8 + 16) * 2)
    with pytest.raises(DeviceError, match="asked for"):
        program.create_cache(-1)
    wrong = replace(part, caches=(CacheSpec(1, "full", 2, 8, 8),))
    with pytest.raises(DeviceError, match="which the part does not have"):
        CPU.compile(wrong, b.package, {})
    with pytest.raises(DeviceError, match="does not fit the cache"):
        CPU.compile(replace(part, caches=(CacheSpec(0, "full", 1, 8, 8),)), b.package, {})


def test_errors_are_ours() -> None:
    with pytest.raises(DatongError) as error:
        PluginBackend("/nonexistent.so")
    assert str(error.value).startswith("[plug-in nonexistent.so] ") and "\nhint: " in str(error.value)
