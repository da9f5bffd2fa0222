"""What the inputs of each linear layer look like: the mean of x x^T / |x|^2 while the model reads some tokens.

Every token counts the same. In plain sums the first tokens of a text, whose activations are hundreds of times as large
in some layers, outweigh all others: the KL divergence of the quantised SmolLM2-135M is then 0.136 instead of 0.115.

The program runs unfused, with the inputs of linear layers as further outputs of its parts; so any backend will do. The
sums of all layers may not fit into memory: they are gathered for a few layers at a time, in order, and the model reads
the tokens again for the next few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from datong import env
from datong.compiler import memory
from datong.compiler.cache import cached_program
from datong.engine.devices import open_devices
from datong.engine.engine import Engine
from datong.engine.model import Model
from datong.engine.runner import Runner
from datong.package.files import Progress, watch
from datong.package.reader import Package
from datong.quantize.source import F32, PRODUCTS
from datong.spec.program import TOKENS, Node, Program

BUDGET = 1 << 30  # bytes of sums at a time
STEP = 128  # tokens
TINY = np.float32(1e-12)  # for inputs that are all 0


class Inputs:
    """The gram matrices of one model.

    Args:
        package: the model as it is.
        texts: gives the token ids that it reads, each text on its own; called once, at the first question.
        threads: of the CPU backend; None: as for `load`.
        progress: told of texts.
    """

    def __init__(
        self,
        package: Package,
        texts: Callable[[], Sequence[list[int]]],
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._package, self._read, self._tell = package, texts, watch(progress)
        self._texts: Sequence[list[int]] = ()
        self._backends = open_devices("cpu").backends
        self._program = cached_program(package, self._backends, fuse=False)
        settings = {"threads": threads or env.threads(), "activations": "f32", "max_tokens": STEP, "max_rows": 1}
        self._options = {name: str(value) for name, value in settings.items() if value is not None}
        self._source, self._widths = _linear_inputs(self._program)
        self._grams: dict[str, F32] = {}

    def gram(self, weight: str) -> F32 | None:
        """Mean of x x^T / |x|^2 over the inputs of the layer with this weight value, [n, n]; None: they are not seen.

        Cheap when asked in the order of the program.
        """
        source = self._source.get(weight)
        if source is None:
            return None
        if source not in self._grams:
            self._grams.clear()
            self._gather(self._next(source))
        return self._grams[source]

    def _next(self, first: str) -> list[str]:
        """Inputs from `first` on, as many as the budget allows; one at least."""
        names, total = list(self._widths), 0
        found: list[str] = []
        for name in names[names.index(first) :]:
            total += 4 * self._widths[name] ** 2
            if found and total > BUDGET:
                break
            found.append(name)
        return found

    def _gather(self, names: Sequence[str]) -> None:
        self._texts = self._texts or self._read()
        wanted = set(names)
        parts = tuple(
            memory.plan(replace(part, outputs=tuple(dict.fromkeys((*part.outputs, *_made(part.nodes, wanted))))))
            for part in self._program.parts
        )
        longest = max(len(text) for text in self._texts) + 1
        runner = Runner(replace(self._program, parts=parts), self._backends, longest, self._options)
        sums = {name: np.zeros((self._widths[name],) * 2, np.float32) for name in names}
        seen = 0

        def add(outputs: Mapping[str, np.ndarray]) -> None:
            for name in wanted & outputs.keys():
                x = outputs[name] / np.maximum(np.linalg.norm(outputs[name], axis=1, keepdims=True), TINY)
                sums[name] += x.T @ x

        runner.watch = add
        model = Model(self._package, Engine(runner, longest, max_tokens=STEP, max_rows=1), "cpu")
        for done, text in enumerate(self._texts):
            self._tell("calibrating", done, len(self._texts))
            result = model.generate(text, max_tokens=1, ignore_eos=True)
            seen += result.prompt_tokens - result.cached_tokens
        self._tell("calibrating", len(self._texts), len(self._texts))
        self._grams = {name: total / np.float32(seen) for name, total in sums.items()}


def _linear_inputs(program: Program) -> tuple[dict[str, str], dict[str, int]]:
    """Weight -> the input of its layer; and the width of each such input, in the order of the program."""
    source: dict[str, str] = {}
    widths: dict[str, int] = {}
    for part in program.parts:
        for node in part.nodes:
            x, weight = (node.inputs[i] for i in PRODUCTS[node.op]) if node.op in PRODUCTS else ("", "")
            if x and part.values[x].kind == "temp" and part.values[x].shape[0] == TOKENS and weight not in source:
                source[weight] = x
                widths[x] = int(part.values[x].shape[-1])
    return source, widths


def _made(nodes: Sequence[Node], wanted: set[str]) -> list[str]:
    return [name for node in nodes for name in node.outputs if name in wanted]
