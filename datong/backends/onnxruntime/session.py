"""A graph in a session of ONNX Runtime, driven with flattened tokens and a paged cache.

The bytes of graph.onnx go in unchanged, except that the file names of its weights are rewritten where they are links
(a hub cache): ONNX Runtime refuses links that leave the directory. Datong has resolved and checked them before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
from numpy.typing import NDArray

from datong.backends.onnxruntime.cache import PagedStore, halves
from datong.backends.onnxruntime.providers import Provider, one_line
from datong.dtypes import DType
from datong.errors import DeviceError
from datong.spec.backend import Cache, Placed
from datong.spec.caches import check_step
from datong.spec.program import STATE_KINDS, TOKENS, Node, Part, Step

Array = NDArray[Any]

WHERE = "onnxruntime"


class OnnxRuntimeExecutable:
    """One whole model, open in a session. Not for two threads at once."""

    def __init__(
        self, provider: Provider, part: Part, package: str, dtype: DType, threads: int, options: Mapping[str, str]
    ) -> None:
        self._provider, self._part, self._dtype = provider, part, dtype
        self._whole = [name for name in part.outputs if part.values[name].shape[0] == TOKENS]  # for speculation
        [self._logits] = [name for name in part.outputs if name not in self._whole]
        self._given = [name for name in part.inputs if name not in ("ids", "positions", "rows")]
        self._vocab = int(part.values[self._logits].shape[-1])
        self._session = _open(provider, part, Path(package), threads, options)
        self._halves = [(spec, half) for spec in part.caches for half in halves(spec)]
        self._pasts = [
            f"past_{'state' if s.kind in STATE_KINDS else 'key_values'}.{s.layer}.{h}" for s, h in self._halves
        ]
        self._presents = [f"present{'_state' if s.kind in STATE_KINDS else ''}.{s.layer}.{h}" for s, h in self._halves]
        self._check_interface()
        self._assigned = _assignment(self._session)

    def create_cache(self, blocks: int, window_blocks: int = 0, states: int = 0) -> PagedStore:
        """Allocate a store on the host."""
        return PagedStore(self._part.caches, self._dtype, blocks, window_blocks, states)

    def memory(self) -> dict[str, int]:
        """Bytes of the weights in their files. ONNX Runtime does not tell how many of them it copies or repacks."""
        pieces = {(p.file, p.offset, p.length) for value in self._part.values.values() for p in value.pieces}
        return {"weights_mapped": sum(length for _, _, length in pieces), "weights_private": 0, "arena": 0}

    def placement(self) -> list[Placed]:
        """The provider of the graph nodes that each node came from, as far as ONNX Runtime tells.

        It names the nodes that are left after its own rewriting: a node that was folded into a constant, or replaced by
        its function body (nameless nodes), is known only to be in one of the providers of the session.
        """
        return [self._placed(node) for node in self._part.nodes]

    def _placed(self, node: Node) -> Placed:
        if node.op == "take_rows":
            return Placed(node.name, node.op, "numpy, after the graph")
        names = [name for name in node.name.split("+") if name in self._assigned]
        found = {self._assigned[name] for name in names}
        if found:
            text = ", ".join(f"{provider} {op}" for provider, op in sorted(found))
        else:
            text = " or ".join(sorted({provider for provider, _ in self._assigned.values()})) + " (rewritten)"
        providers = {provider for provider, _ in found or self._assigned.values()}
        elsewhere = ", ".join(sorted(providers - {self._provider.name}))
        return Placed(node.name, node.op, f"onnxruntime {text}", elsewhere)

    def run(self, step: Step, cache: Cache | None, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph once per group of sequences with the same lengths; the logits of the wanted rows.

        What the graph gives for speculation is given of all tokens.
        """
        if not isinstance(cache, PagedStore):
            raise DeviceError(WHERE, f"the cache should be its own, is a {type(cache).__name__}")
        check_step(step, vocab_size=self._vocab, **cache.limits)
        logits = np.empty((len(step.rows), self._vocab), np.float32)
        place = np.full(len(step.ids), -1)
        whole: dict[str, Array] = {}
        for past, members in _groups(step):
            tokens = step.query_starts[members][:, None] + np.arange(int(step.context_lens[members[0]]) - past)
            answer, *others = self._run_group(step, cache, members, tokens, past, inputs)
            for name, other in zip(self._whole, others, strict=True):
                whole.setdefault(name, np.empty((len(step.ids), other.shape[-1]), np.float32))[tokens] = other
            answer = answer.reshape(-1, self._vocab)
            place[:] = -1
            place[tokens.reshape(-1)] = np.arange(tokens.size)
            wanted = np.flatnonzero(place[step.rows] >= 0)
            logits[wanted] = answer[place[step.rows[wanted]]]
        return {self._logits: logits, **whole}

    def _run_group(
        self, step: Step, cache: PagedStore, members: Array, tokens: Array, past: int, inputs: Mapping[str, Array]
    ) -> list[Array]:
        """Sequences `members` [B] with `past` tokens in the cache and new `tokens` [B, S]: outputs [B, S, …]."""
        feed = {"input_ids": step.ids[tokens], "position_ids": step.positions[tokens]}
        feed |= {name: inputs[name][tokens] for name in self._given}
        for name, (spec, half) in zip(self._pasts, self._halves, strict=True):
            feed[name] = cache.past(spec, half, step, members, past)
        try:
            found = self._session.run([self._logits, *self._whole, *self._presents], feed)
        except Exception as error:  # the exceptions of ONNX Runtime have no common base
            raise DeviceError(WHERE, f"{self._provider.name} should run the graph, got: {one_line(error)}") from error
        own = 1 + len(self._whole)
        for (spec, half), present in zip(self._halves, found[own:], strict=True):
            cache.keep(spec, half, step, members, past, present)
        return [np.asarray(array) for array in found[:own]]

    def _check_interface(self) -> None:
        """The graph's inputs and outputs are those of the part's caches: it is the graph that was compiled."""
        for what, got, wanted in (
            ("inputs", self._session.get_inputs(), {"input_ids", "position_ids", *self._given, *self._pasts}),
            ("outputs", self._session.get_outputs(), {*self._part.outputs, *self._presents}),
        ):
            if odd := {value.name for value in got} ^ wanted:
                raise DeviceError(WHERE, f"{what} of graph.onnx should be those of the program, `{min(odd)}` is not")


def _groups(step: Step) -> Iterator[tuple[int, Array]]:
    """Sequences with new tokens, by equal lengths: (tokens before this step, indices of the sequences)."""
    new = np.diff(step.query_starts)
    past = step.context_lens - new
    lengths = np.stack([past, new], axis=1)
    for before, count in np.unique(lengths[new > 0], axis=0):
        yield int(before), np.flatnonzero((past == before) & (new == count))


# ---- opening --------------------------------------------------------------------------------------------------------


def _open(
    provider: Provider, part: Part, root: Path, threads: int, options: Mapping[str, str]
) -> onnxruntime.InferenceSession:
    try:
        graph = Path(part.graph).read_bytes()
    except OSError as error:
        raise DeviceError(WHERE, f"`{part.graph}` should open, got: {error.strerror or error}") from error
    folder, graph = _real_files(graph, root, {p.file for value in part.values.values() for p in value.pieces})
    try:
        settings, chosen = provider.configure(options)
        settings.intra_op_num_threads = threads
        settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        return onnxruntime.InferenceSession(graph, settings, **chosen)
    except Exception as error:  # the exceptions of ONNX Runtime have no common base
        hint = f"opset 27 with windows needs ONNX Runtime 1.32 or later, this is {onnxruntime.__version__}"
        raise DeviceError(WHERE, f"{provider.name} should open `{part.graph}`, got: {one_line(error)}", hint) from error


def _real_files(graph: bytes, root: Path, files: set[str]) -> tuple[Path, bytes]:
    """The directory of the weights and the graph that names them there; changed only where a file is a link."""
    real = {name: Path(os.path.realpath(root / name)) for name in sorted(files)}
    base = Path(os.path.realpath(root))
    if all(path == base / name for name, path in real.items()):
        return base, graph
    import onnx

    base = Path(os.path.commonpath([path.parent for path in real.values()]))
    model = onnx.ModelProto.FromString(graph)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location" and entry.value in real:
                entry.value = real[entry.value].relative_to(base).as_posix()
    return base, model.SerializeToString()


def _assignment(session: onnxruntime.InferenceSession) -> dict[str, tuple[str, str]]:
    """Graph node -> (provider, operator), of the nodes that kept their names."""
    assigned: dict[str, tuple[str, str]] = {}
    for piece in session.get_provider_graph_assignment_info():
        for node in piece.get_nodes():
            assigned[node.name or f"#{len(assigned)}"] = (piece.ep_name, node.op_type)
    return assigned
