"""One program on several devices, and a device that lost an operator: the same logits, and nothing silent."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import datong
from datong.backends import registry
from datong.backends.reference.backend import ReferenceBackend
from datong.backends.registry import backend_for
from datong.engine import devices
from datong.errors import FallbackWarning, InvalidRequest, Unsupported
from datong.spec.backend import No

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
FAMILIES = ["internlm2", "internlm3", "llama3", "llama3_sharded", "qwen2", "qwen3", "smollm2"]
BOUND = 2e-3  # tests/data/goldens/README.md


class Third(ReferenceBackend):
    """The definition once more, as a third device."""

    name = "third"


class Without:
    """A backend that lost an operator, and all fusions with it."""

    option_names = None

    def __init__(self, inner, op: str) -> None:
        self._inner, self._op = inner, op
        self.name, self.api_version = "maimed", inner.api_version
        self.devices, self.compile = inner.devices, inner.compile

    def fusions(self):
        return frozenset()

    def supports(self, node, values):
        return No(f"no kernel for {node.op}") if node.op == self._op else self._inner.supports(node, values)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def more_devices(monkeypatch):
    extra = {"third": Third(), "maimed": Without(backend_for("cpu"), "glu")}
    for module in (devices, registry):
        monkeypatch.setattr(module, "backend_for", lambda name: extra.get(name) or backend_for(name))


def answer(family: str) -> tuple[np.ndarray, np.ndarray]:
    """ids [24], logits [24, vocab]."""
    stored = load_file(GOLDENS / family / "golden.safetensors")
    return stored["input_ids"][0], stored["logits"][0]


def load(family, device, **options):
    return datong.load(GOLDENS / family, device, cache_dtype="f32", strict=True, **options)


def differs(model, family) -> float:
    """Worst logit over the whole prompt, in chunks of uneven batches."""
    ids, logits = answer(family)
    lengths = [24, 1, 9, 17]
    batch = model.logits_batch([ids[:n] for n in lengths])
    return max(np.abs(rows - logits[: len(rows)]).max() for rows in batch)


@pytest.mark.parametrize("device", ["cpu,reference", "reference,cpu"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_devices_in_a_row(family, device):
    model = load(family, device, split=1, step_tokens=10)
    assert [part.backend for part in model.engine.runner.program.parts] == device.split(",")
    assert [next(c.layer for c in part.caches) for part in model.engine.runner.program.parts] == [0, 1]
    assert differs(model, family) <= BOUND


@pytest.fixture(scope="module")
def four_layers(tmp_path_factory) -> Path:
    """The golden llama3 with its two layers twice."""
    target = tmp_path_factory.mktemp("four") / "llama"
    target.mkdir()
    config = json.loads((GOLDENS / "llama3" / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    weights = load_file(GOLDENS / "llama3" / "model.safetensors")
    weights |= {
        name.replace(f"layers.{i}.", f"layers.{i + 2}."): array
        for name, array in weights.items()
        for i in (0, 1)
        if f"layers.{i}." in name
    }
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_three_devices_in_a_row(four_layers):
    ids, _ = answer("llama3")
    want = load(four_layers, "reference").logits(ids)
    model = load(four_layers, "reference,cpu,third", split="1,3", step_tokens=9)
    assert [(p.backend, [c.layer for c in p.caches]) for p in model.engine.runner.program.parts] == [
        ("reference", [0]), ("cpu", [1, 2]), ("third", [3]),
    ]  # fmt: skip
    assert model.engine.runner.block_size % 16 == 0
    assert np.abs(model.logits(ids) - want).max() <= BOUND
    assert (
        model.generate(ids[:9], max_tokens=12).tokens
        == load(four_layers, "cpu").generate(ids[:9], max_tokens=12).tokens
    )


def test_weights_lie_on_one_device_each(four_layers):
    first, second = load(four_layers, "cpu,reference", split=2).engine.runner.program.parts
    names = [{n for n, v in part.values.items() if v.kind == "weight"} for part in (first, second)]
    assert not names[0] & names[1]
    assert {n for n in names[0] if "layers.2." in n or "layers.3." in n or "lm_head" in n} == set()
    assert first.nodes[0].op in ("embedding", "rope_table") and second.nodes[-1].outputs == ("logits",)


def test_a_row_is_kept_apart_from_other_plans(four_layers):
    def parts(split):
        return [len(p.caches) for p in datong.compile(four_layers, "cpu,reference", split=split).parts]

    assert [parts(1), parts(3), parts(None), parts(1)] == [[1, 3], [3, 1], [4], [1, 3]]


@pytest.mark.parametrize(
    ("device", "split", "text"),
    [
        ("cpu,reference", 2, "should be from 1 to 1, got 2"),
        ("cpu,reference", 0, "should be from 1 to 1, got 0"),
        ("cpu", 1, "one split is expected between each two devices, got 1 for 1 device"),
        ("cpu,cpu", 1, "`cpu` comes twice"),
    ],
)
def test_what_is_no_row(device, split, text):
    with pytest.raises(InvalidRequest, match=text):
        load("llama3", device, split=split)


# ---- a device that lost an operator ----------------------------------------------------------------------------------


def test_a_fallback_is_told_and_strict_refuses_it():
    with pytest.warns(
        FallbackWarning, match=r"2 of \d+ nodes run elsewhere than asked: glu x2 on reference \(maimed: no"
    ):
        model = datong.load(GOLDENS / "llama3", "maimed", cache_dtype="f32")
    assert differs(model, "llama3") <= BOUND
    ran = [(where, placed.implementation) for where, placed in model.placement() if placed.op == "glu"]
    assert ran == [("reference", "numpy glu")] * 2
    with pytest.raises(Unsupported, match="backend `maimed`, as strict asks, but 2 of") as error:
        load("llama3", "maimed")
    assert [reason for _, reason in error.value.reasons] == ["maimed: no kernel for glu"] * 2


def test_the_second_device_takes_what_the_first_refuses():
    with pytest.warns(FallbackWarning, match="glu x2 on third"):
        model = load("llama3", "maimed,third")
    assert {part.backend for part in model.engine.runner.program.parts} == {"maimed", "third"}
    assert differs(model, "llama3") <= BOUND


def test_in_a_row_too():
    with pytest.warns(FallbackWarning, match="1 of .* glu x1 on third"):
        model = datong.load(GOLDENS / "llama3", "maimed,third", split=1, cache_dtype="f32")
    assert differs(model, "llama3") <= BOUND
    with pytest.raises(Unsupported, match="its layer's backend of `maimed`, `third`, as strict asks, but 1 of"):
        load("llama3", "maimed,third", split=1)


def test_options_go_to_those_that_know_them():
    load("llama3", "cpu,reference", split=1, activations="f32", keep_mb=3)
    with pytest.raises(InvalidRequest, match="option `keep_mb` is not known to `cpu`"):
        load("llama3", "cpu", keep_mb=3)
    with pytest.raises(InvalidRequest, match="option `thread` is not known"):
        load("llama3", "cpu,reference", thread=3)
    with pytest.raises(InvalidRequest, match="`max_tokens` is the engine's own"):
        load("llama3", "cpu", max_tokens=3)


def test_the_first_device_says_how_large_steps_are():
    def step(device, **options):
        return load("llama3", device, **options).engine.scheduler.max_tokens

    assert [step("cpu"), step("reference"), step("reference,cpu"), step("cpu", step_tokens=9)] == [256, 512, 512, 9]
    with pytest.raises(InvalidRequest, match="step_tokens should be a whole number from 1, got `0`"):
        load("llama3", "cpu", step_tokens=0)


# ---- the command line ------------------------------------------------------------------------------------------------


def test_run_says_what_runs_elsewhere(cli, package):
    ended = cli("run", package, "hello", "--max-tokens", "4", "--device", "maimed", "--placement")
    assert ended.code == 0
    warning, *rest = ended.err.splitlines()
    assert warning.startswith("warning: 2 of ") and warning.endswith(
        "(maimed: no kernel for glu); --strict refuses that"
    )
    assert "elsewhere than asked" in rest and any(line.split()[:2] == ["glu", "reference"] for line in rest)
    strict = cli("run", package, "hello", "--device", "maimed", "--strict")
    assert strict.code == 2 and "as strict asks" in strict.err and strict.out == ""


def test_a_row_on_the_command_line(cli, package):
    asked = ["run", package, "hello", "--max-tokens", "6", "--json"]
    row = cli(*asked, "--device", "cpu,reference", "--split", "1", "--option", "keep_mb=2")
    assert row.code == 0 and json.loads(row.out)["tokens"] == json.loads(cli(*asked).out)["tokens"]
    assert "warning" not in row.err
    text = cli("compile", package, "--explain", "--device", "cpu,reference", "--split", "1").out
    assert (
        "transfers through the host, 320 bytes per token" in text and "cpu -> reference  256 bytes  per token" in text
    )
    for wrong in (["--option", "x"], ["--option", "isa=ref"], ["--split", "1"], ["--option", "wrong=1"]):
        assert cli(*asked, *wrong).code == 2
