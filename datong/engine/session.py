"""A conversation: its messages, and one turn after another. What earlier turns computed is found in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from datong.engine.results import Chunk, Result

if TYPE_CHECKING:
    from datong.engine.model import Model, Stream


class Session:
    """Turns with one model. Each turn renders the whole conversation; only its new part is computed.

    Attributes:
        messages: as the chat template gets them; may be edited between turns.
        last: the result of the last turn, as far as it came.
    """

    def __init__(self, model: Model, system: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        self.model, self.options = model, dict(options or {})
        self.system = system
        self.messages: list[dict[str, Any]] = []
        self.last: Result | None = None
        self.clear()

    def clear(self) -> None:
        """Forget every turn; the system message stays."""
        self.messages = [{"role": "system", "content": self.system}] if self.system else []
        self.last = None

    def stream(self, text: str, **options: Any) -> Iterator[Chunk]:
        """One turn, chunk by chunk. Closing the iterator (or Ctrl-C) ends it; what came so far is kept as the answer.

        Raises as Model.generate, at once; then the turn did not happen.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        answer = self.model.generate(asked, stream=True, **{**self.options, **options})
        self.last = answer.result
        return self._chunks(asked, answer)

    def say(self, text: str, **options: Any) -> Result:
        """One turn, whole."""
        for _ in self.stream(text, **options):
            pass
        assert self.last is not None
        return self.last

    def _chunks(self, asked: list[dict[str, Any]], answer: Stream) -> Iterator[Chunk]:
        self.messages = asked  # only now: a turn whose first chunk is never asked for did not happen
        try:
            with answer:
                yield from answer
        finally:
            self.messages.append({"role": "assistant", "content": answer.result.text})
