"""Caches of every kind on real backends: reuse changes no answer, and a long context takes no more memory."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import datong
from datong.backends.registry import backend_for
from datong.conformance.build import PartBuilder
from datong.engine.engine import Engine
from datong.engine.request import Request
from datong.engine.results import Result
from datong.engine.runner import Runner
from datong.engine.sampler import SamplingParams
from datong.spec.caches import caches_of
from datong.spec.program import ROWS, TOKENS, Program

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
KINDS = {
    "smollm2": {"full"},
    "step3p5": {"full", "window"},
    "minimax_text01": {"full", "recurrent"},
    "qwen3_next": {"full", "recurrent", "conv"},
    "deepseek_v3": {"latent"},
    "deepseek_v32": {"latent", "index"},
    "minimax_m3_vl": {"full", "index"},
}
DEVICES = ["reference", "torch:cpu", "onnxruntime", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def load(family: str, device: str, cache_tokens: int = 2048) -> Engine:
    sizes = {"context": 128, "cache_tokens": cache_tokens, "step_tokens": 16, "step_rows": 8}
    return datong.load(GOLDENS / family, device, cache_dtype="f32", **sizes).engine


def run(engine: Engine, *prompts: list[int], count: int = 6) -> list[Result]:
    requests = [Request(list(p), len(p) + count, SamplingParams()) for p in prompts]
    for _ in engine.chunks(requests):
        pass
    assert engine.pool.held == 0
    return [request.result for request in requests]


@pytest.mark.filterwarnings("ignore::datong.errors.FallbackWarning")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", KINDS)
def test_reuse_gives_the_answers_of_a_fresh_engine(family: str, device: str) -> None:
    engine, fresh = load(family, device), load(family, device)
    kinds = {spec.kind for part in engine.runner.program.parts for spec in part.caches}
    assert kinds == KINDS[family] and (engine.states is not None) == bool(kinds & {"recurrent", "conv"})
    prompt = np.random.default_rng(5).integers(5, engine.vocab, 70).tolist()
    [first] = run(engine, prompt)
    turns = [[*prompt, *first.tokens, 7, 8, 9], [*prompt[:66], 11, 12], prompt]
    together = run(engine, *turns)
    assert [result.cached_tokens for result in together] == [64] * 3
    assert [r.tokens for r in together] == [fresh_one.tokens for turn in turns for fresh_one in run(fresh, turn)]
    assert engine.runner.memory()["cache"] > 0


@pytest.mark.filterwarnings("ignore::datong.errors.FallbackWarning")
@pytest.mark.parametrize("family", ["step3p5", "qwen3_next"])
def test_preempted_sequences_end_as_if_alone(family: str) -> None:
    short, alone = load(family, "torch:cpu", 128), load(family, "torch:cpu")
    prompts = [np.random.default_rng(i).integers(5, short.vocab, 30).tolist() for i in range(4)]
    got = run(short, *prompts, count=40)
    assert short.scheduler.preemptions > 0
    assert [r.tokens for r in got] == [r.tokens for p in prompts for r in run(alone, p, count=40)]


# ---- 100,000 tokens --------------------------------------------------------------------------------------------------

Model = Callable[[PartBuilder, str], str]
LENGTH, WINDOW, WIDTH, VOCAB = 100_000, 100, 16, 32


def window_only(b: PartBuilder, x: str) -> str:
    q, k, v = (
        b.node("linear", [x, b.weight(f"w{n}", "f32", (WIDTH, WIDTH), 0.2)], [(n, (TOKENS, WIDTH))]) for n in "qkv"
    )
    attrs = {"layer": 0, "num_heads": 2, "num_kv_heads": 2, "scale": 0.3, "window": WINDOW, "softcap": 0.0}
    return b.node("attention", [q, k, v], [("y", (TOKENS, WIDTH))], attrs)


def recurrent(b: PartBuilder, x: str) -> str:
    conv = b.node("causal_conv", [x, b.weight("taps", "f32", (WIDTH, 4), 0.5)], [("c", (TOKENS, WIDTH))],
                  {"layer": 0, "kind": "silu"})  # fmt: skip
    slopes = b.const("slopes", np.array([0.5, 0.9], np.float32))  # exp(-0.5 * 100): nothing is left after a window
    return b.node("linear_attention", [conv, conv, conv, slopes], [("y", (TOKENS, WIDTH))],
                  {"layer": 0, "num_heads": 2, "scale": 0.3})  # fmt: skip


def engine_of(b: PartBuilder, model: Model, device: str, tokens: int, options: Mapping[str, str]) -> Engine:
    """A model of one layer."""
    b.input("ids", (TOKENS,), "i64"), b.input("rows", (ROWS,), "i64")
    x = b.node("embedding", ["ids", b.weight("table", "f32", (VOCAB, WIDTH))], [("x", (TOKENS, WIDTH))])
    picked = b.node("take_rows", [model(b, x), "rows"], [("z", (ROWS, WIDTH))])
    b.node("linear", [picked, b.weight("head", "f32", (VOCAB, WIDTH))], [("logits", (ROWS, VOCAB))])
    b.caches += [spec for node in b.nodes for spec in caches_of(node, b.values)]
    program = Program(b.package, (b.part(["logits"]),), VOCAB, tokens)
    return Engine(Runner(program, [backend_for(device)], tokens, options, step_tokens=512, sequences=4), tokens)


@pytest.mark.parametrize(
    ("model", "device"),
    [(window_only, "torch:cpu"), (window_only, "cpu"), (recurrent, "torch:cpu"), (recurrent, "cpu")],
)
def test_100_000_tokens_take_no_more_memory(model: Model, device: str) -> None:
    prompt = np.random.default_rng(3).integers(0, VOCAB, LENGTH).tolist()
    with PartBuilder(1, device) as b, PartBuilder(1, device) as same:
        engine = engine_of(b, model, device, LENGTH + 64, {"cache_dtype": "f32"})
        held = []
        whole = engine.runner.run
        engine.runner.run = lambda step: (  # type: ignore[method-assign]
            held.append((engine.windows.held if engine.windows else 0, engine.states.held if engine.states else 0)),
            whole(step),
        )[1]
        size = engine.runner.memory()["cache"]
        [result] = run(engine, prompt, count=30)
        tail = engine_of(same, model, device, 1024, {"cache_dtype": "f32"})
        assert result.tokens == run(tail, prompt[-WINDOW - 60 :], count=30)[0].tokens
    block = engine.pool.block_size
    assert len(held) > LENGTH / 512 + 29
    assert max(windows for windows, _ in held) <= (WINDOW + 512) / block + 2 and max(states for _, states in held) <= 1
    assert engine.runner.memory()["cache"] == size < 2**20 < LENGTH * WIDTH * 8
