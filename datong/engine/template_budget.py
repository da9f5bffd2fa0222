"""What a chat template may spend, and the sizes that are checked before and after each operation of it.

Sizes are checked *before* wherever a result can be much larger than what went in (`'a' * 10**10`, `replace`, `join`,
widths), because one such call into C cannot be interrupted. Values inside values are counted each time they are
reached, so a list that holds itself twice, sixty times over, is refused while it is small in memory.
"""

from __future__ import annotations

import re
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Sized, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2.utils import Namespace

MAX_TEXT = 16 << 20  # characters of any text and of all that is printed; a million tokens are about 4 million
MAX_STEPS = 1_000_000  # about 1 s; Qwen 3 takes 110 for a message, so this is 9,000 messages
MAX_SECONDS = 5.0
MAX_BITS = 4096  # of a whole number; Python prints 4,300 digits at most
MAX_WIDTH = 10_000  # characters that a width or an indent may add
LOOK = 50  # steps between looks at the clock; a step can take a few milliseconds on the largest values

PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap"})
COUNTS = frozenset({"batch", "slice", "round", "truncate"})
PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[-#0 +.\d]*(?:\*|\d{4})")  # a width from the arguments, or of 4 digits
BRACE_WIDTH = re.compile(r"\{[^{}]*:[^{}]*(?:\{|\d{4})")

_active: ContextVar[Budget | None] = ContextVar("datong_template_budget", default=None)


class TemplateLimitError(Exception):
    """The template asked for more than it may have; the text says of what."""


class Budget:
    """What one rendering may still spend. Use as a context manager around it."""

    def __init__(self, steps: int = MAX_STEPS, text: int = MAX_TEXT, seconds: float = MAX_SECONDS) -> None:
        self.steps, self.text = steps, text
        self._seconds, self._deadline, self._look = seconds, time.monotonic() + seconds, LOOK

    def __enter__(self) -> Budget:
        self._token = _active.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        _active.reset(self._token)

    def spend(self, steps: int) -> None:
        """Pay for work. Raises TemplateLimitError when nothing is left or the time is over."""
        self.steps -= steps
        self._look -= steps
        if self.steps < 0:
            raise TemplateLimitError(f"more than {MAX_STEPS:,} steps")
        if self._look < 0:
            self._look = LOOK
            if time.monotonic() > self._deadline:
                raise TemplateLimitError(f"more than {self._seconds:g} seconds")

    def emit(self, characters: int) -> None:
        """Pay for printed text."""
        self.text -= characters
        if self.text < 0:
            raise TemplateLimitError(f"more than {MAX_TEXT:,} characters of text")
        self.spend(1 + characters // 64)


def budget() -> Budget:
    """That of the running render; a small one at compile time."""
    return _active.get() or Budget(steps=10_000)


def check_length(length: int) -> None:
    """Refuse a text or list that would be too long, before it exists."""
    if length > MAX_TEXT:
        raise TemplateLimitError(f"a value of {length:,} elements")


def weigh(value: Any) -> Any:
    """Pay for the size of a value, values inside values included; gives the value back."""
    kind = type(value)
    if kind is bool or value is None:
        return value
    stack, pay = [value], budget()
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            check_length(len(item))
            pay.spend(1 + len(item) // 64)
        elif isinstance(item, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
            pay.spend(1 + len(item))
            stack.extend(item)
        elif isinstance(item, dict):
            pay.spend(1 + len(item))
            stack.extend(item)
            stack.extend(item.values())
        elif isinstance(item, Namespace):
            pay.spend(2)
            stack.append(item._Namespace__attrs)
        elif isinstance(item, int) and item.bit_length() > MAX_BITS:
            raise TemplateLimitError("a whole number of more than a thousand digits")
    return value


def counted(iterable: Iterable[Any]) -> Iterator[Any]:
    """Iterate; each round costs a step."""
    for item in iterable:
        budget().spend(1)
        yield item


def sized(value: Any) -> Any:
    """`value`, made a list if it is an iterator, so that its length is known."""
    return value if isinstance(value, Sized) or not isinstance(value, Iterable) else list(counted(value))


def check_growth(name: str, subject: Any, args: tuple[Any, ...]) -> None:
    """Before a method or filter that can make much of little: refuse a result that would be too long."""
    numbers = [abs(a) for a in args if isinstance(a, int)]
    longest = max((len(a) for a in args if isinstance(a, str)), default=0)
    if name in PADDING:
        _check_padding(name, str(subject), max(numbers, default=0), longest)
    elif name in COUNTS:
        check_length(16 * max(numbers, default=0))
    elif name == "replace" and len(args) >= 2:
        text, old, new = str(subject), str(args[0]), str(args[1])
        check_length(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "join":
        check_length(len(subject) * longest if isinstance(subject, Sized) else 0)
    elif name == "format":
        check_format(str(subject), args)
    elif name == "tojson":
        elements, depth = _extent(subject)
        texts = [s for a in args if isinstance(a, (list, tuple)) for s in a if isinstance(s, str)]
        check_length(elements * (depth * max((*numbers, longest)) + sum(map(len, texts))))
    elif name == "sum" and not all(isinstance(a, (int, float, str)) or a is None for a in args):
        raise TemplateLimitError("a sum of lists")  # adding them one by one takes the square of their length


def check_format(form: str, args: tuple[Any, ...]) -> None:
    """`'…' % x`, `'…'.format(x)`: widths are short, and values printed often are not long."""
    if PERCENT_WIDTH.search(form) or BRACE_WIDTH.search(form):
        raise TemplateLimitError("a format with a width of 1,000 and more, or one taken from its arguments")
    fields = form.count("%") + form.count("{")
    longest = max((len(str(weigh(a))) for a in args), default=0)
    check_length(len(form) + fields * (longest + 1000 * any(c.isdigit() for c in form)))


def _check_padding(name: str, text: str, width: int, longest: int) -> None:
    if width > MAX_WIDTH:
        raise TemplateLimitError(f"a width of {width:,}")
    pieces = {"indent": text.count("\n"), "expandtabs": text.count("\t"), "wordwrap": len(text)}.get(name, 0)
    check_length(len(text) + (1 + pieces) * max(width, longest))


def _extent(value: Any) -> tuple[int, int]:
    """Elements and depth of a value that was weighed before, so this walk is bounded."""
    elements, depth, level = 0, 0, [value]
    while level:
        elements, depth = elements + len(level), depth + 1
        lists = [v.values() if isinstance(v, dict) else v for v in level if isinstance(v, (dict, list, tuple))]
        level = [item for part in lists for item in part]
    return elements, depth
