"""Small tokenizers of the two decoder families, and a device without arithmetic that checks its cache."""

from collections.abc import Mapping

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from datong.engine.engine import Engine
from datong.engine.runner import Runner
from datong.engine.tokenizer import Tokenizer
from datong.errors import DeviceError
from datong.spec.backend import CacheLayout, Placed
from datong.spec.program import CacheSpec, Part, Program, Step

CORPUS = [
    "the quick brown fox",
    "hello world, hello there",
    "def f(x):\n    return x",
    "你好，世界",
    "naïve café",
    "ab ab ab",
]


def byte_level() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|end|>", "<s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    inner.train_from_iterator(CORPUS * 5, trainer)
    inner.add_tokens(["<tool>", "标记"])  # added, not special; the second lies outside the byte table
    return inner


def sentence_piece() -> tokenizers.Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<s>", "</s>"])
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(["the quick brown fox hello world ab"], trainer)
    vocab = trained.get_vocab(with_added_tokens=True)
    for byte in range(256):
        vocab.setdefault(f"<0x{byte:02X}>", len(vocab))
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    return inner


def word_piece() -> tokenizers.Tokenizer:
    """A decoder that we have no byte table for."""
    words = ["[UNK]", "hello", "wor", "##ld", ",", "the", "##re", "你", "好"]
    inner = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece()
    return inner


INNERS = {"byte_level": byte_level(), "sentence_piece": sentence_piece(), "word_piece": word_piece()}


@pytest.fixture(scope="session", params=INNERS)
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer(INNERS[request.param], {}, None)


@pytest.fixture(scope="session")
def exact_tokenizers() -> dict[str, Tokenizer]:
    """Those with a byte table."""
    return {name: Tokenizer(INNERS[name], {}, None) for name in ("byte_level", "sentence_piece")}


class NullCache:
    """Slots that hold token ids instead of keys and values, and states that hold all tokens before."""

    def __init__(self, blocks: int, block_size: int, windows: int, states: int, kinds: frozenset[str]) -> None:
        per = {kind: 8 * (kind in kinds) for kind in ("full", "window", "recurrent")}
        self.blocks, self.layout = (
            blocks,
            CacheLayout(block_size, "f32", block_size * per["full"], block_size * per["window"], per["recurrent"]),
        )
        self.slots = np.full((blocks, block_size), -1, np.int64)
        self.windows = np.full((windows, block_size), -1, np.int64) if windows else self.slots
        self.states: list[tuple[int, ...]] = [(-1,)] * states

    def copy_block(self, source: int, target: int) -> None:
        self.slots[target] = self.slots[source]

    def copy_state(self, source: int, target: int) -> None:
        self.states[target] = self.states[source]


class NullExecutable:
    """A model without arithmetic: the logits after a token depend on every token before it, read from the cache.

    So a wrong block, a stale block or a wrong position changes the answer.
    """

    def __init__(self, vocab: int, block_size: int, specs: tuple[CacheSpec, ...] = ()) -> None:
        self.vocab, self.block_size = vocab, block_size
        self.kinds = frozenset(spec.kind for spec in specs)
        self.window = max((spec.window for spec in specs), default=0)
        self.steps: list[Step] = []
        self.fail_at = -1  # number of the step that raises
        self.poison = -1  # a context that holds this token gives NaN

    def create_cache(self, blocks: int, window_blocks: int = 0, states: int = 0) -> NullCache:
        self.cache = NullCache(blocks, self.block_size, window_blocks, states, self.kinds)
        return self.cache

    def run(self, step: Step, cache: NullCache, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.steps.append(step)
        if len(self.steps) - 1 == self.fail_at:
            raise DeviceError("null", "the device fell over")
        rows = {int(r): i for i, r in enumerate(step.rows)}
        logits = np.zeros((len(rows), self.vocab), np.float32)
        for s in range(len(step.context_lens)):
            start, end, length = step.query_starts[s], step.query_starts[s + 1], step.context_lens[s]
            for t in range(start, end):
                position = int(length - (end - t))
                assert step.positions[t] == position
                cache.slots[step.block_tables[s, position // self.block_size], position % self.block_size] = step.ids[t]
                context = cache.slots[step.block_tables[s, : position // self.block_size + 1]].ravel()
                context = context[: position + 1].tolist()
                if t in rows or len(self.kinds) > 1 or self.window:
                    self.check_window(step, s, cache, position, context)
                if "recurrent" in self.kinds:
                    slot = int(step.state_slots[s])
                    cache.states[slot] = (*(cache.states[slot] if position else ()), int(step.ids[t]))
                    assert cache.states[slot] == tuple(context), "the state is not that of the tokens before"
                if t in rows:
                    logits[rows[t]] = self.logits_of(context)
        return {"logits": logits}

    def check_window(self, step: Step, s: int, cache: NullCache, position: int, context: list[int]) -> None:
        """Write the newest token, and find the window's others as they were written."""
        if "window" not in self.kinds or not self.window:
            return
        tables = step.block_tables if step.window_tables is None else step.window_tables
        places = np.arange(max(0, position - self.window + 1), position + 1)
        blocks = tables[s, places // self.block_size]
        assert (blocks >= 0).all(), "a block that the window sees was given back"
        cache.windows[blocks[-1], position % self.block_size] = context[-1]
        seen = cache.windows[blocks, places % self.block_size]
        assert seen.tolist() == context[-len(seen) :], "the window holds other tokens"

    def logits_of(self, context: list[int]) -> np.ndarray:
        assert min(context) >= 0, "a slot that was never written is read"
        seed = hash(tuple(context)) % 2**32
        row = np.random.default_rng(seed).standard_normal(self.vocab).astype(np.float32)
        return row * np.nan if self.poison in context else row

    def placement(self) -> list[Placed]:
        return [Placed("n", "linear", "null")]

    def memory(self) -> dict[str, int]:
        return {"weights_mapped": 5, "weights_private": 2, "arena": 1}


class NullBackend:
    """Gives out one executable per part."""

    api_version = (1, 0)

    def __init__(self, executable: object, name: str = "null") -> None:
        self.name, self.executable = name, executable

    def compile(self, part: Part, package: str, options: Mapping[str, str]) -> object:
        return self.executable


def null_part(name: str = "null", kinds: tuple[str, ...] = ("full",), window: int = 0) -> Part:
    specs = tuple(CacheSpec(i, kind, 1, 1, 1, window if kind == "window" else 0) for i, kind in enumerate(kinds))
    return Part(name, {}, (), ("ids", "positions", "rows"), ("logits",), specs)


@pytest.fixture
def make_engine():
    """`make_engine(tokens=…)` -> Engine over a NullExecutable (`engine.null`)."""

    def make(
        tokens: int = 64,
        *,
        block_size: int = 4,
        vocab: int = 340,
        context: int = 10**6,
        kinds: tuple[str, ...] = ("full",),
        window: int = 0,
        runner: Mapping[str, int] | None = None,
        **sizes,
    ):
        part = null_part(kinds=kinds, window=window)
        executable = NullExecutable(vocab, block_size, part.caches)
        program = Program("", (part,), vocab, 4096)
        engine = Engine(Runner(program, [NullBackend(executable)], tokens, **(runner or {})), context, **sizes)
        engine.null = executable
        return engine

    return make
