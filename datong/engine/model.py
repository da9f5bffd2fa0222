"""`Model`: what `datong.load` returns. Prompts in, text or logits out; everything else is the engine's.

A prompt is a text, a list of token ids, or a conversation (a list of `{"role", "content"}`). A text gets the special
tokens that the tokenizer adds; a conversation goes through the package's chat template, which writes them itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from datong.engine.chat_template import ChatTemplate, Message
from datong.engine.detokenizer import Detokenizer
from datong.engine.engine import Engine
from datong.engine.request import Request, Score
from datong.engine.results import Chunk, Result
from datong.engine.sampler import SamplingParams
from datong.engine.tokenizer import Tokenizer
from datong.errors import DtypeError, InvalidRequest, ShapeError, TemplateError

if TYPE_CHECKING:
    from datong.engine.dialogue import DialogueReader
    from datong.engine.guide import Grammars, Guide
    from datong.engine.session import Session
    from datong.package.reader import Package
    from datong.spec.backend import Placed
    from datong.spec.dialogue import Dialogue

Ids = Sequence[int] | np.ndarray
Prompt = str | Ids | Sequence[Message]


class Stream:
    """Chunks of one or several answers as they come; `results` grow with them. `close` cancels what is left."""

    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self._engine, self._requests = engine, requests
        self._chunks = engine.chunks(requests)

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; the cache blocks go back. Harmless when repeated."""
        self._chunks.close()  # type: ignore[attr-defined]
        for request in self._requests:
            self._engine.cancel(request)  # a generator that never started runs no finally

    @property
    def results(self) -> list[Result]:
        """One per prompt."""
        return [request.result for request in self._requests]

    @property
    def result(self) -> Result:
        """Of the only prompt."""
        return self._requests[0].result


class Model:
    """A package, compiled and on its device. Threads may share it; its steps run one at a time.

    Attributes:
        package: as opened.
        device: as asked for.
        context: tokens that one sequence may have here, prompt and answer together.
    """

    def __init__(self, package: Package, engine: Engine, device: str) -> None:
        self.package, self.engine, self.device = package, engine, device
        self.context = engine.context

    def __repr__(self) -> str:
        return f"Model({self.package.manifest.model.name!r}, device={self.device!r}, context={self.context})"

    @property
    def vocab_size(self) -> int:
        """Columns of the logits."""
        return self.engine.vocab

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Of the package. Raises TokenizerError when it has none."""
        return Tokenizer.load(self.package)

    @cached_property
    def _templates(self) -> dict[bool, ChatTemplate]:
        return {}

    @cached_property
    def grammars(self) -> Grammars:
        """Makes guides, which constrain answers to a JSON schema, a regex or a grammar."""
        from datong.engine.guide import Grammars

        return Grammars(self.tokenizer, self.vocab_size)

    @cached_property
    def dialogue(self) -> Dialogue | None:
        """How the model writes reasoning and tool calls; None where the package does not say it."""
        return self.package.dialogue()

    def answer_reader(self, tools: Sequence[Mapping[str, Any]] | None = None, prompt: str = "") -> DialogueReader:
        """Takes the text of one answer apart as it comes: reasoning, text, tool calls.

        Args:
            tools: those that the request named; None: calls are not looked for.
            prompt: text that the answer continues, as the chat template rendered it.
        """
        from datong.engine.dialogue import DialogueReader

        return DialogueReader(self.dialogue, tools, prompt)

    def placement(self) -> list[tuple[str, Placed]]:
        """(backend, where the node runs) for every node, in order of execution."""
        return self.engine.runner.placement()

    def memory(self) -> dict[str, int]:
        """Bytes by use: `weights_mapped`, `weights_private`, `arena`, `cache` (what it may grow to)."""
        return self.engine.runner.memory()

    # ── logits ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def logits(self, ids: Ids) -> np.ndarray:
        """Teacher forcing: the logits after each token.

        Args:
            ids: [T] integers, 0 <= T <= context.

        Returns:
            [T, vocab] f32.

        Raises:
            ShapeError, DtypeError: `ids` is no list of integers.
            InvalidRequest: an id is not in the vocabulary.
            ContextOverflow: more tokens than the context.
        """
        return self.logits_batch([ids])[0]

    def logits_batch(self, batch: Sequence[Ids]) -> list[np.ndarray]:
        """As `logits`, for sequences of different lengths at once: a list of [T_i, vocab] f32."""
        lists = [_ids(ids) for ids in batch]
        for tokens in lists:
            if tokens:
                self.engine.check(tokens, 0)
        scores = [Score(tokens, self.vocab_size) for tokens in lists]
        self.engine.run([score for score in scores if len(score.logits)])
        return [score.logits for score in scores]

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, pooling: str | None = None, dimensions: int | None = None
    ) -> np.ndarray:
        """Texts as vectors of length 1, for search and comparison. The model must be loaded with `hidden`.

        Args:
            prompts: one, or a list of them.
            pooling: mean or last; None: as the package says, else mean.
            dimensions: how many numbers of each vector, from its beginning; None: all.

        Returns:
            [n] f32, or [prompts, n] for a list.

        Raises:
            InvalidRequest, ContextOverflow: before anything runs.
        """
        from datong.engine.embedding import Embedding, check_pooling

        if not self.has_hidden:
            raise InvalidRequest("embed", "the model should be loaded with `hidden`, it is not", "load(…, hidden=True)")
        if dimensions is not None and dimensions < 1:
            raise InvalidRequest("embed", f"dimensions should be at least 1, got {dimensions}")
        how = check_pooling(pooling or self.package.pooling() or "mean")
        many, items = _split(prompts)
        lists = [self.encode(one) for one in items]
        for tokens in lists:
            self.engine.check(tokens, 0)
        work = [Embedding(tokens, how) for tokens in lists]
        self.engine.run(work)
        vectors = [one.shortened(dimensions) for one in work]
        return np.stack(vectors) if many else vectors[0]

    @property
    def hidden_size(self) -> int:
        """Numbers of a vector that `embed` gives; 0 where it cannot be used."""
        parts = self.engine.runner.program.parts
        shapes = [part.values["hidden"].shape for part in parts if "hidden" in part.outputs]
        return int(shapes[-1][-1]) if shapes else 0

    @property
    def has_hidden(self) -> bool:
        """Can `embed` be used?"""
        return any("hidden" in part.outputs for part in self.engine.runner.program.parts)

    # ── text ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **options: Any) -> Stream: ...
    @overload
    def generate(self, prompt: str, *, stream: Literal[False] = ..., **options: Any) -> Result: ...
    @overload
    def generate(self, prompt: Any, *, stream: bool = ..., **options: Any) -> Any: ...

    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        max_tokens: int | None = None,
        stop: str | Iterable[str] = (),
        stream: bool = False,
        ignore_eos: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_options: Mapping[str, Any] | None = None,
        marks: bool = False,
        **sampling: Any,
    ) -> Result | list[Result] | Stream:
        """Continue a prompt, or several at once.

        Args:
            prompt: a text, token ids, a conversation, or a list of texts, of id lists, or of conversations.
            max_tokens: of each answer; None: as many as the context allows. An answer that reaches the end of the
                context ends with `finish_reason` "length".
            stop: strings that end an answer; they are not part of its text.
            stream: return a Stream of Chunks at once, instead of results at the end.
            ignore_eos: go on when the model says that it is done.
            tools: JSON schemas of functions, for the chat template.
            template_options: further variables for it, such as `enable_thinking`.
            marks: leave the special tokens that mark reasoning and tool calls in the text, for `answer_reader`.
            sampling: temperature (0: greedy, the default), top_k, top_p, min_p, repetition_penalty,
                presence_penalty, frequency_penalty, logit_bias, seed, logprobs; see SamplingParams.

        Returns:
            A Result, or a list of them for a list of prompts; a Stream with `stream`.

        Raises:
            InvalidRequest, ContextOverflow, TemplateError, TokenizerError: before anything runs.
            DeviceError: while running.
        """
        params = _params(sampling)
        if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
            raise InvalidRequest("generate", f"max_tokens should be a whole number from 1, got `{max_tokens}`")
        many, prompts = _split(prompt)
        extra = dict(template_options or {})
        requests = []
        for index, one in enumerate(prompts):
            tokens = self.encode(one, tools=tools, **extra)
            self.engine.check(tokens, 1)
            limit = min(self.context, len(tokens) + (max_tokens or self.context))
            is_chat = _is_chat(one)
            requests.append(self.request(tokens, limit, params, stop, ignore_eos, is_chat, index, marks))
        answers = Stream(self.engine, requests)
        if stream:
            return answers
        for _ in answers:
            pass
        return answers.results if many else answers.result

    def chat(self, messages: str | Sequence[Message], **options: Any) -> Any:
        """`generate` for one conversation; a text is a conversation of one user message."""
        return self.generate(
            [{"role": "user", "content": messages}] if isinstance(messages, str) else messages, **options
        )

    def session(self, system: str | None = None, **options: Any) -> Session:
        """A conversation that remembers its turns; `options` as for `generate`, for every turn."""
        from datong.engine.session import Session

        return Session(self, system, options)

    def encode(self, prompt: Prompt, *, tools: Sequence[Mapping[str, Any]] | None = None, **extra: Any) -> list[int]:
        """Token ids of one prompt, as `generate` would run it."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        if _is_chat(prompt):
            messages: Any = prompt
            text = self.chat_template(bool(tools)).render(messages, tools=tools, **extra)
            return self.tokenizer.encode(text, add_special=False)
        return _ids(prompt)

    def chat_template(self, tools: bool = False) -> ChatTemplate:
        """The package's template, compiled. Raises TemplateError when it has none."""
        if tools not in self._templates:
            source = self.tokenizer.chat_template(tools)
            if source is None:
                raise TemplateError(
                    "chat template", f"`{self.package.root}` should carry one, it has none", "give the prompt as a text"
                )
            self._templates[tools] = ChatTemplate(source, self.tokenizer.specials)
        return self._templates[tools]

    def request(
        self,
        tokens: list[int],
        limit: int,
        params: SamplingParams,
        stop: str | Iterable[str] = (),
        ignore_eos: bool = False,
        is_chat: bool = False,
        index: int = 0,
        marks: bool = False,
        guide: Guide | None = None,
    ) -> Request:
        """One generation for `engine.submit`; `tokens` passed `engine.check`, `limit` counts them too."""
        has_text = self.package.tokenizer_file is not None
        if stop and not has_text:
            raise InvalidRequest("stop", "stop strings need a tokenizer, the package has none")
        keep = self.tokenizer.marks(self.dialogue) if marks and has_text and self.dialogue else frozenset[int]()
        detokenizer = Detokenizer(self.tokenizer, continues=not is_chat, keep=keep) if has_text else None
        stop_ids = self.tokenizer.eos_ids if has_text and not ignore_eos else frozenset()
        return Request(tokens, limit, params, detokenizer, stop, stop_ids, index, guide)


def _params(sampling: Mapping[str, Any]) -> SamplingParams:
    known = SamplingParams.__dataclass_fields__
    unknown = [name for name in sampling if name not in known]
    if unknown:
        raise InvalidRequest("generate", f"option `{unknown[0]}` is not known", f"options: {', '.join(known)}")
    return SamplingParams(**sampling)


def _is_chat(prompt: object) -> bool:
    """A list of messages?"""
    return isinstance(prompt, (list, tuple)) and bool(prompt) and isinstance(prompt[0], Mapping)


def _split(prompt: Any) -> tuple[bool, list[Any]]:
    """Is it a list of prompts, and the prompts."""
    if isinstance(prompt, (list, tuple)) and prompt and isinstance(prompt[0], (str, list, tuple, np.ndarray)):
        return True, list(prompt)
    return False, [prompt]


def _ids(ids: object) -> list[int]:
    """Token ids as a list. Raises ShapeError, DtypeError."""
    try:
        array = np.asarray(ids)
    except ValueError:
        raise ShapeError("ids", "token ids should be one list of integers, lists of different lengths came") from None
    if array.ndim != 1:
        raise ShapeError("ids", f"token ids should have shape [T], got {list(array.shape)}")
    if array.size and array.dtype.kind not in "iu":
        raise DtypeError("ids", f"token ids should be integers, got {array.dtype}")
    found: list[int] = array.tolist()
    return found
