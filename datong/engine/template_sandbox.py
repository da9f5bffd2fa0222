"""A Jinja environment in which a chat template cannot hang, fill the memory, or reach Python's insides.

A template is a program from a stranger, run in our process, where nothing can stop it from outside. So everything
that can do much work is rewritten in the syntax tree, or intercepted, to pay from a `Budget` first:

    loops            the iterated value is wrapped, each round costs a step
    calls, macros    each call costs a step; recursion ends at Python's limit; methods of values are an allow-list
    + - * / // % **  sizes before, and after
    ~ and filters    sizes before where a result can be larger than what went in, and after
    == < in, [a:b]   the sizes of what is compared or copied
    [..] (..) {..}   the size of what they hold, values inside values included
    text             everything that is printed, into blocks and macros too

Names with an underscore in front, and attributes that are Python's own, raise instead of giving an empty value.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Sized
from functools import wraps
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

from datong.engine.template_budget import (
    MAX_BITS,
    TemplateLimitError,
    budget,
    check_format,
    check_growth,
    check_length,
    counted,
    sized,
    weigh,
)

# Methods that a template may call on values: none changes a value, none makes much of little unchecked.
METHODS: dict[type, frozenset[str]] = {
    str: frozenset({
        "capitalize", "casefold", "center", "count", "endswith", "expandtabs", "find", "format", "index", "isalnum",
        "isalpha", "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace",
        "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix",
        "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith",
        "strip", "swapcase", "title", "upper", "zfill",
    }),
    list: frozenset({"count", "index", "copy"}),
    tuple: frozenset({"count", "index"}),
    dict: frozenset({"get", "items", "keys", "values", "copy"}),
    int: frozenset({"bit_length"}),
    float: frozenset({"is_integer"}),
}  # fmt: skip
# Filters that look at the outermost level only: a long conversation may be passed to them once per message.
SHALLOW = frozenset({"length", "count", "first", "last", "default", "d", "list", "items", "reverse", "map", "select",
                     "reject", "selectattr", "rejectattr"})  # fmt: skip
REMOVED_FILTERS = ("random", "urlize", "xmlattr", "pprint")  # no prompt needs them, and their cost is hard to bound
COMPARING_TESTS = ("==", "eq", "equalto", "!=", "ne", "<", "lt", "lessthan", "<=", "le", ">", "gt", "greaterthan", ">=",
                   "ge", "in")  # fmt: skip


class Generation(Extension):
    """`{% generation %} … {% endgeneration %}`: marks the answer for training; here only its content counts."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Drop the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class SafeNamespace(Namespace):
    """`namespace(...)`, without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        attrs = dict(*args, **kwargs)
        for name in attrs:
            _refuse_underscore(name)
        Namespace.__init__(self, attrs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        Namespace.__setitem__(self, name, value)


def _refuse_underscore(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"attribute `{name}` is private")


class SafeDict:
    """`dict(...)` and `dict.fromkeys(...)`, but not the type with its methods."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """As Python's."""
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        """As Python's."""
        return dict.fromkeys(*args)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates expect it, within limits. Their own functions are added by chat_template.py."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, Generation],
            finalize=_finalize,
            optimized=False,  # nothing may be computed while compiling, where no budget is open
            cache_size=0,
        )
        for name in REMOVED_FILTERS:
            del self.filters[name]
        del self.globals["lipsum"]
        self.globals.update(namespace=SafeNamespace, dict=SafeDict())
        for name, function in list(self.filters.items()):
            self.add_filter(name, function)
        for name in COMPARING_TESTS:
            self.tests[name] = _guarded_test(self.tests[name])
        self.filters.update(_weigh=_weigh, _count=_count, _concat=_concat)

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Install a filter behind the size checks."""
        self.filters[name] = _guarded_filter(name, function)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _rewrite(tree)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, sizes first."""
        budget().spend(1)
        if operator == "*":
            for value, times in ((left, right), (right, left)):
                if isinstance(value, (str, list, tuple)) and isinstance(times, int):
                    check_length(len(value) * max(0, times))
        elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
            check_length(len(left) + len(right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * abs(right) > MAX_BITS:
                raise TemplateLimitError("a power of more than a thousand digits")
        elif operator == "%" and isinstance(left, str):
            weigh(right)
            check_format(left, right if isinstance(right, tuple) else (right,))
        return weigh(self.binop_table[operator](left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """A call from the template: paid, of an allowed method, sizes checked."""
        budget().spend(1)
        method = getattr(__obj, "__wrapped__", __obj)  # str.format comes wrapped by the sandbox
        if isinstance(method, types.BuiltinMethodType):
            subject, name = method.__self__, method.__name__
            if name not in METHODS.get(type(subject), ()):
                raise SecurityError(f"method `{name}` of `{type(subject).__name__}` is not available to templates")
            if name == "join" and args:
                args = (sized(args[0]), *args[1:])
            weigh([*args, *kwargs.values()])
            if name == "join" and args:
                check_growth(name, args[0], (subject,))
            else:
                check_growth(name, subject, (*args, *kwargs.values()))
        else:
            weigh([*args, *kwargs.values()])
        return weigh(super().call(__context, __obj, *args, **kwargs))

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """Raise at once: an empty value would hide the attempt."""
        raise SecurityError(f"attribute `{attribute}` of `{type(obj).__name__}` is not available to templates")

    def getattr(self, obj: Any, attribute: str) -> Any:
        """`x.name`; a private name is refused whether it exists or not, unless it is a key."""
        if attribute.startswith("_") and not (isinstance(obj, dict) and attribute in obj):
            self.unsafe_undefined(obj, attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """`x['name']`, which Jinja lets fall back to attributes."""
        if isinstance(argument, str) and argument.startswith("_") and not isinstance(obj, dict):
            self.unsafe_undefined(obj, argument)
        return super().getitem(obj, argument)


def _guarded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter with its sizes checked before and after. Context arguments of Jinja stand before the subject."""
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) > skip:
            subject = sized(args[skip]) if name == "join" else args[skip]
            args = (*args[:skip], subject, *args[skip + 1 :])
            rest = (*args[skip + 1 :], *kwargs.values())
            if name in SHALLOW:
                budget().spend(1 + (len(subject) // 64 if isinstance(subject, Sized) else 0))
                return function(*args, **kwargs)
            weigh([subject, *rest])
            check_growth(name, subject, rest)
        return weigh(function(*args, **kwargs))

    return call


def _guarded_test(function: Any) -> Callable[..., Any]:
    """A test that compares pays for what it compares."""

    @wraps(function)
    def call(*args: Any) -> Any:
        weigh(args)
        return function(*args)

    return call


@pass_context
def _finalize(_: Context, value: Any) -> Any:
    """Everything printed passes here. `pass_context` keeps Jinja from printing constants while compiling."""
    if isinstance(value, Undefined):
        return value
    if not isinstance(value, str):
        value = str(weigh(value))
    budget().emit(len(value))
    return value


@pass_context
def _weigh(_: Context, value: Any) -> Any:
    return weigh(value)


@pass_context
def _count(_: Context, value: Any) -> Any:
    return value if isinstance(value, Undefined) else _Counted(value)


@pass_context
def _concat(_: Context, *parts: Any) -> str:
    """`a ~ b`, sizes first."""
    texts = [p if isinstance(p, str) else str(weigh(p)) for p in parts]
    check_length(sum(map(len, texts)))
    return str(weigh("".join(texts)))


class _Counted:
    """A counted iterable that still knows its length, for `loop.length`. TypeError as from the value itself."""

    def __init__(self, value: Iterable[Any]) -> None:
        self._value = value
        self._iterator = iter(value)

    def __iter__(self) -> Iterator[Any]:
        return counted(self._iterator)

    def __len__(self) -> int:
        return len(self._value)  # type: ignore[arg-type]


def _filter(name: str, *args: Any, like: nodes.Node) -> nodes.Filter:
    made = nodes.Filter(args[0], name, list(args[1:]), [], None, None)
    made.set_lineno(like.lineno)
    made.set_environment(like.environment)  # type: ignore[arg-type]
    return made


def _rewritten(node: nodes.Node) -> nodes.Node:
    """The checked form of one node whose children are done."""
    if isinstance(node, nodes.Concat):
        return _filter("_concat", *node.nodes, like=node)
    is_value = isinstance(node, (nodes.List, nodes.Dict)) or (isinstance(node, nodes.Tuple) and node.ctx == "load")
    if is_value or (isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice) and node.ctx == "load"):
        return _filter("_weigh", node, like=node)
    if isinstance(node, nodes.For):
        node.iter = _filter("_count", node.iter, like=node)
    elif isinstance(node, nodes.Compare):
        node.expr = _filter("_weigh", node.expr, like=node)
        for operand in node.ops:
            operand.expr = _filter("_weigh", operand.expr, like=node)
    elif isinstance(node, nodes.Output):
        # Constant text becomes a value, so that printing it in a loop is paid for.
        for i, part in enumerate(node.nodes):
            if isinstance(part, nodes.TemplateData):
                text = nodes.Const(part.data, lineno=part.lineno, environment=part.environment)
                node.nodes[i] = _filter("_weigh", text, like=part)
    return node


def _rewrite(node: nodes.Node) -> None:
    """Replace nodes by their checked forms, children first."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            _rewrite(value)
            setattr(node, name, _rewritten(value))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, nodes.Node):
                    _rewrite(item)
                    value[i] = _rewritten(item)
