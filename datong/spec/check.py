"""Does a program obey the rows of ops.py? Every broken rule is a VerifyError that names the node.

The rows are read as text, so nothing is said twice: `x[T,H*D] f32`, `bias[out]? plain`, `weight[out_i,in] format *`.
A dim is a product or quotient of symbols; symbols are bound by attributes (`int H`, or by the attribute's own name) and
by solving for the one unknown. What a row says in words (D divides n) is in `_RULES` below.

`check_step`, which backends rely on as well, is in spec/caches.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from datong.errors import VerifyError
from datong.spec import formats
from datong.spec.caches import caches_of, key
from datong.spec.ops import OPS, Op
from datong.spec.program import ROWS, TOKENS, Attr, Dim, Node, Part, Value, expert

Bound = dict[str, Dim]  # symbol of a row -> what it is in this node


@dataclass(frozen=True)
class Operand:
    """One parsed input or output of a row."""

    name: str
    dims: tuple[str, ...]
    kind: str  # f32 | i64 | format (a weight of any format) | plain (of a plain format) | experts (a stack)
    optional: bool
    repeated: bool
    const: bool


_OPERAND = re.compile(
    r"(?P<name>\w+)\[(?P<dims>[^\]]*)\](?P<optional>\?)? ?(?P<kind>f32|i64|format|plain|experts)(?P<rest>.*)"
)
_ATTR = re.compile(r"(?P<type>int|float|str)(?: (?P<symbol>[A-Za-z]\w*))?")


@cache
def operand(text: str) -> Operand:
    """Parse one operand of a row. A row that cannot be parsed is our bug, met by the tests of this file."""
    m = _OPERAND.fullmatch(text)
    if m is None:
        raise VerifyError("spec", f"operand `{text}` of ops.py cannot be read")
    dims = tuple(d.strip() for d in m["dims"].split(","))
    return Operand(m["name"], dims, m["kind"], bool(m["optional"]), "*" in m["rest"], "const" in m["rest"])


def operands(op: Op, count: int = 1) -> tuple[list[Operand], list[Operand]]:
    """Inputs and outputs of a row with each `*` operand written out `count` times: out_i becomes out_0, out_1."""

    def numbered(o: Operand, i: int) -> Operand:
        return replace(o, dims=tuple(re.sub(r"_i$", f"_{i}", d) for d in o.dims))

    def expand(texts: tuple[str, ...]) -> list[Operand]:
        return [numbered(o, i) for o in map(operand, texts) for i in range(count if o.repeated else 1)]

    return expand(op.inputs), expand(op.outputs)


def _fail(node: Node, message: str, hint: str | None = None) -> VerifyError:
    return VerifyError("verify", f"node `{node.name}` ({node.op}): {message}", hint)


# ---- one node ---------------------------------------------------------------------------------------------------


def check_node(node: Node, values: Mapping[str, Value]) -> None:
    """Check one node against its row: operator, attributes, operands, dtypes, shapes. Raises VerifyError."""
    op = OPS.get(node.op)
    if op is None:
        raise _fail(node, "no such operator", f"operators are {', '.join(OPS)}")
    bound = _check_attrs(op, node)
    inputs, outputs = operands(op, _int(bound, "count") if "count" in op.attrs else 1)
    required = max((i + 1 for i, o in enumerate(inputs) if not o.optional), default=0)
    if not required <= len(node.inputs) <= len(inputs):
        wanted = str(required) if required == len(inputs) else f"{required} to {len(inputs)}"
        raise _fail(node, f"takes {wanted} inputs, has {len(node.inputs)}")
    if len(node.outputs) != len(outputs):
        raise _fail(node, f"gives {len(outputs)} outputs, has {len(node.outputs)}")
    seen = list(zip(inputs, node.inputs, strict=False)) + list(zip(outputs, node.outputs, strict=True))
    bound |= {f"has {o.name}": int(bool(name)) for o, name in zip(inputs, node.inputs, strict=False)}
    for index, (wanted_operand, name) in enumerate(seen):
        if not name:
            if not wanted_operand.optional:
                raise _fail(node, f"`{wanted_operand.name}` is required, it is absent")
            continue
        if name not in values:
            raise _fail(node, f"`{wanted_operand.name}` is `{name}`, which is not a value of the part")
        value = values[name]
        _check_kind(node, wanted_operand, value, is_output=index >= len(node.inputs))
        _check_shape(node, wanted_operand, value, bound)
    for holds, text in _RULES.get(node.op, ()):
        if not holds(bound, node.attrs):
            raise _fail(node, f"{text}, here {_facts(text, bound, node.attrs)}")


def _check_attrs(op: Op, node: Node) -> Bound:
    """Attributes present, known, of their type and in range; returns the symbols that they bind."""
    bound: Bound = {}
    if unknown := sorted(set(node.attrs) - set(op.attrs)):
        raise _fail(node, f"attribute `{unknown[0]}` is not in the row", f"the row has {', '.join(op.attrs) or 'none'}")
    for name, text in op.attrs.items():
        m = _ATTR.match(text)
        if m is None:
            raise VerifyError("spec", f"attribute `{name}` of `{op.name}` in ops.py has no type")
        if name not in node.attrs and "default" in text:
            if default := re.search(r"default (\d+)", text):
                bound[name] = int(default[1])
            continue
        if name not in node.attrs:
            raise _fail(node, f"attribute `{name}` ({text}) is missing")
        value = node.attrs[name]
        types = {"int": (int,), "float": (int, float), "str": (str,)}[m["type"]]
        if not isinstance(value, types) or isinstance(value, bool):
            raise _fail(node, f"attribute `{name}` should be {m['type']}, is `{value!r}`")
        if isinstance(value, float) and not math.isfinite(value):
            raise _fail(node, f"attribute `{name}` should be finite, is {value}")
        if isinstance(value, int | float) and text.startswith("float > 0") and value <= 0:
            raise _fail(node, f"attribute `{name}` should be > 0, is {value}")
        if isinstance(value, int) and m["type"] == "int":
            bound[name] = value
            if m["symbol"]:
                bound[m["symbol"]] = value
                if value < 1:
                    raise _fail(node, f"attribute `{name}` should be >= 1, is {value}")
    return bound


def _check_kind(node: Node, wanted: Operand, value: Value, *, is_output: bool) -> None:
    """Kind, dtype and format of one operand."""
    if is_output and value.kind != "temp":
        raise _fail(node, f"writes `{value.name}`, which is a {value.kind}")
    if wanted.kind in ("format", "plain", "experts"):
        plain_const = wanted.kind == "plain" and value.kind == "const" and value.dtype == "f32"
        if value.kind != "weight" and not plain_const:
            raise _fail(node, f"`{wanted.name}` should be a weight, `{value.name}` is a {value.kind}")
        if value.kind == "weight":
            if wanted.kind == "experts":
                _check_stack(node, value)
            else:
                _check_weight(node, value, plain=wanted.kind == "plain")
        return
    if value.kind == "weight":
        raise _fail(node, f"`{wanted.name}` should be {wanted.kind}, `{value.name}` is a weight")
    if wanted.const and value.kind != "const":
        raise _fail(node, f"`{wanted.name}` should be a constant, `{value.name}` is a {value.kind}")
    if value.dtype != wanted.kind:
        raise _fail(node, f"`{wanted.name}` should be {wanted.kind}, `{value.name}` is {value.dtype}")


def _check_stack(node: Node, value: Value) -> None:
    """Each expert of a stack is a weight `[out, in]` of the one format."""
    shape, fmt = tuple(d for d in value.shape if isinstance(d, int)), formats.BY_NAME.get(value.format)
    if fmt is None or len(value.shape) != 3 or len(shape) != 3 or min(shape) < 1:
        got = f"{list(value.shape)} {value.format}"
        raise _fail(node, f"`{value.name}` should be a stack of weights [E, out, in], is {got}")
    count, roles = shape[0], len(fmt.pieces)
    if len(value.pieces) not in (roles, count * roles):
        raise _fail(
            node, f"stack `{value.name}` should have {roles} or {count * roles} pieces, has {len(value.pieces)}"
        )
    together = len(value.pieces) == roles and count > 1
    if together and any(p.shape[:1] != (count,) or p.length % count for p in value.pieces):
        raise _fail(node, f"pieces of stack `{value.name}` should begin with {count}, one for each expert")
    for index in (0, count - 1) if together else range(count):
        _check_weight(node, expert(value, index), plain=False)


def _check_weight(node: Node, value: Value, *, plain: bool) -> None:
    """Format known, pieces complete and of the dtype, shape and length that the format asks for."""
    fmt = formats.BY_NAME.get(value.format)
    if fmt is None:
        raise _fail(node, f"weight `{value.name}` has the unknown format `{value.format}`")
    shape = tuple(int(d) for d in value.shape if not isinstance(d, str))
    if len(shape) != len(value.shape) or min(shape, default=0) < 1:
        raise _fail(node, f"weight `{value.name}` should have a fixed shape, has {list(value.shape)}")
    if fmt.block:
        if plain:
            raise _fail(node, f"weight `{value.name}` should be f32, f16 or bf16, is {fmt.name}")
        unit = fmt.super_block or fmt.block
        if len(shape) != 2 or (shape[1] % unit and not fmt.tile):
            raise _fail(node, f"weight `{value.name}` ({fmt.name}) should be [out, k * {unit}], is {list(shape)}")
    if value.swapped and (fmt.block or len(shape) < 2):
        raise _fail(node, f"weight `{value.name}` should be a plain matrix to be stored swapped, is {fmt.name}")
    if tuple(p.role for p in value.pieces) != fmt.pieces:
        got = [p.role for p in value.pieces]
        raise _fail(node, f"weight `{value.name}` ({fmt.name}) should have pieces {list(fmt.pieces)}, has {got}")
    for piece in value.pieces:
        stored = fmt.piece_shape(piece.role, *shape) if fmt.block else shape
        if value.swapped:
            stored = (*shape[:-2], shape[-1], shape[-2])
        dtype = fmt.piece_dtype(piece.role)
        wanted = (dtype.name, tuple(stored), dtype.nbytes(math.prod(stored)))
        if (piece.dtype, tuple(piece.shape), piece.length) != wanted or piece.offset < 0:
            raise _fail(
                node,
                f"piece `{piece.role}` of `{value.name}` should be {wanted[0]} {list(wanted[1])}, {wanted[2]} bytes, "
                f"is {piece.dtype} {list(piece.shape)}, {piece.length} bytes at {piece.offset}",
            )


# ---- shapes -----------------------------------------------------------------------------------------------------


def _check_shape(node: Node, wanted: Operand, value: Value, bound: Bound) -> None:
    """Match the dims of a value with those of its row, binding symbols on the way."""
    if len(value.shape) != len(wanted.dims):
        raise _fail(
            node, f"`{wanted.name}` should be [{', '.join(wanted.dims)}], `{value.name}` is {list(value.shape)}"
        )
    for text, dim in zip(wanted.dims, value.shape, strict=True):
        if not _match(text, dim, bound):
            known = ", ".join(f"{k} = {v}" for k, v in bound.items() if re.search(rf"\b{k}\b", " ".join(wanted.dims)))
            shape = f"[{', '.join(wanted.dims)}]" + (f" with {known}" if known else "")
            raise _fail(node, f"`{wanted.name}` should be {shape}, `{value.name}` is {list(value.shape)}")


def _match(text: str, dim: Dim, bound: Bound) -> bool:
    """Does `dim` equal the row's `text` (`T`, `n`, `Hq*D`, `n/group*length`)? Solves for at most one unknown."""
    if text in (TOKENS, ROWS):
        if isinstance(dim, int) or (text == ROWS and dim != ROWS):
            return False
        return bound.setdefault(text, dim) == dim
    if isinstance(dim, str) or dim < 1:
        return False
    factors = re.findall(r"([*/]?)(\w+)", text)
    known_top, known_bottom, unknown = 1, 1, ""
    for sign, name in factors:
        number = int(name) if name.isdigit() else bound.get(name)
        if number is None:
            unknown = sign + name
        elif sign == "/":
            known_bottom *= int(number)
        else:
            known_top *= int(number)
    if not unknown:
        return known_bottom > 0 and known_top % known_bottom == 0 and known_top // known_bottom == dim
    # rows divide only by numbers and attributes, which are bound before
    if known_top <= 0 or dim * known_bottom % known_top:
        return False
    bound[unknown.lstrip("*")] = dim * known_bottom // known_top
    return True


def _int(bound: Bound, name: str) -> int:
    value = bound[name]
    return value if isinstance(value, int) else 0


def _number(value: Attr) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


KINDS = ("silu", "gelu_tanh", "silu_clamp", "oai")  # of glu
BIASES = ("none", "alibi", "sqrt_alibi")  # of attention
ORDERS = ("split", "halves", "pairs")  # of moe

Rule = tuple[Callable[[Bound, Mapping[str, Attr]], bool], str]
_GLU: tuple[Rule, ...] = (
    (lambda b, a: a["kind"] in KINDS, f"kind should be one of {', '.join(KINDS)}"),
    (
        lambda b, a: (_number(a.get("limit", 0)) > 0) == (a["kind"] in ("silu_clamp", "oai")),
        "limit should be > 0 for silu_clamp and oai, and absent else",
    ),
    (
        lambda b, a: (_number(a.get("alpha", 0)) > 0) == (a["kind"] == "oai"),
        "alpha should be > 0 for oai, and absent else",
    ),
)
_STATE: tuple[Rule, ...] = (
    (lambda b, a: b["T"] == TOKENS, "T should be the tokens of the step"),
    (lambda b, a: _int(b, "layer") >= 0, "layer should be >= 0"),
)
_RULES: dict[str, tuple[Rule, ...]] = {
    "rms_norm": ((lambda b, a: _int(b, "n") % _int(b, "D") == 0, "D should divide n"),),
    "rope": (
        (lambda b, a: _int(b, "r") <= _int(b, "D"), "r should be at most D"),
        (lambda b, a: a["interleaved"] in (0, 1), "interleaved should be 0 or 1"),
    ),
    "attention": (
        (lambda b, a: b["T"] == TOKENS, "T should be the tokens of the step"),
        (lambda b, a: _int(b, "Hq") % _int(b, "Hkv") == 0, "Hkv should divide Hq"),
        (lambda b, a: _int(b, "layer") >= 0, "layer should be >= 0"),
        (lambda b, a: _int(b, "window") >= 0, "window should be >= 0"),
        (lambda b, a: _number(a["softcap"]) >= 0, "softcap should be >= 0"),
        (lambda b, a: a.get("bias", "none") in BIASES, f"bias should be one of {', '.join(BIASES)}"),
    ),
    "slice": (
        (lambda b, a: _int(b, "group") >= 1 and _int(b, "n") % _int(b, "group") == 0, "group should divide n"),
        (
            lambda b, a: (
                _int(b, "start") >= 0
                and _int(b, "length") >= 1
                and _int(b, "start") + _int(b, "length") <= _int(b, "group")
            ),
            "start + length should lie within group",
        ),
    ),
    "embedding": ((lambda b, a: b["T"] == TOKENS, "T should be the tokens of the step"),),
    "rope_table": ((lambda b, a: b["T"] == TOKENS, "T should be the tokens of the step"),),
    "take_rows": ((lambda b, a: b["T"] == TOKENS, "T should be the tokens of the step"),),
    "concat": (
        (
            lambda b, a: _int(b, "n") == _int(b, "groups") * (_int(b, "m") + _int(b, "k")),
            "n should be groups * (m + k)",
        ),
    ),
    "scale_groups": ((lambda b, a: _int(b, "n") % _int(b, "g") == 0, "g should divide n"),),
    "glu": _GLU,
    "moe": (
        *_GLU,
        (lambda b, a: _int(b, "K") <= _int(b, "E"), "K should be at most E"),
        (lambda b, a: a["score"] in ("softmax", "sigmoid"), "score should be softmax or sigmoid"),
        (lambda b, a: a["renorm"] in (0, 1), "renorm should be 0 or 1"),
        (
            lambda b, a: 1 <= _int(b, "top_groups") <= _int(b, "groups") and _int(b, "E") % _int(b, "groups") == 0,
            "groups should divide E, and top_groups lie in 1..groups",
        ),
        (lambda b, a: a.get("order", "split") in ORDERS, f"order should be one of {', '.join(ORDERS)}"),
        (
            lambda b, a: _int(b, "K") * _int(b, "groups") <= _int(b, "E") * _int(b, "top_groups"),
            "K should be at most E / groups * top_groups",
        ),
        (
            lambda b, a: (_int(b, "has up") == 1) == (a.get("order", "split") == "split"),
            "`up` should be given where order is split, and only there",
        ),
        (
            lambda b, a: _int(b, "m") == _int(b, "I") * (1 if a.get("order", "split") == "split" else 2),
            "m should be I where gate and up are apart, 2 I where order is halves or pairs",
        ),
    ),
    "linear_glu": ((lambda b, a: a["kind"] == "silu", "kind should be silu"),),
    "causal_conv": (
        (lambda b, a: a["kind"] in ("none", "silu"), "kind should be none or silu"),
        (lambda b, a: _int(b, "K") >= 2, "K should be at least 2"),
        *_STATE,
    ),
    "gated_delta": ((lambda b, a: _int(b, "Hv") % _int(b, "Hk") == 0, "Hk should divide Hv"), *_STATE),
    "linear_attention": _STATE,
    "select_keys": (
        (lambda b, a: _int(b, "H") % _int(b, "G") == 0, "G should divide H"),
        (lambda b, a: _int(b, "block") >= 1, "block should be >= 1"),
        (lambda b, a: 0 <= _int(b, "local") <= _int(b, "K"), "local should lie in 0..K"),
        (lambda b, a: a["kind"] in ("plain", "relu"), "kind should be plain or relu"),
        *_STATE,
    ),
    "latent_attention": (
        (lambda b, a: _int(b, "D") == _int(b, "P") + _int(b, "Dr"), "D should be P + Dr"),
        (lambda b, a: _int(b, "E") == _int(b, "P") + _int(b, "Dv"), "E should be P + Dv"),
        *_STATE,
    ),
    "sparse_attention": (
        (lambda b, a: _int(b, "Hq") % _int(b, "Hkv") == 0, "Hkv should divide Hq"),
        (lambda b, a: _int(b, "Hkv") % _int(b, "G") == 0, "G should divide Hkv"),
        (lambda b, a: _int(b, "block") >= 1, "block should be >= 1"),
        *_STATE,
    ),
}


def _facts(text: str, bound: Bound, attrs: Mapping[str, Attr]) -> str:
    """The bound values of the symbols that a rule's text mentions."""
    known = {**attrs, **bound}
    return ", ".join(f"{w} is {known[w]}" for w in dict.fromkeys(re.findall(r"\w+", text)) if w in known)


# ---- one part ---------------------------------------------------------------------------------------------------


def check_part(part: Part) -> None:
    """Every node obeys its row, names are defined before use and by one producer, caches fit. Raises VerifyError."""
    where = f"part for `{part.backend}`"
    for name, value in part.values.items():
        if name != value.name:
            raise VerifyError("verify", f"{where}: value `{value.name}` is listed as `{name}`")
        _check_const(value)
    defined = {name for name, v in part.values.items() if v.kind in ("weight", "const")} | set(part.inputs)
    for name in part.inputs:
        if name not in part.values or part.values[name].kind != "input":
            raise VerifyError("verify", f"{where}: input `{name}` should be a value of kind input")
    names: set[str] = set()
    for node in part.nodes:
        if not node.name or node.name in names:
            raise _fail(node, "its name should be unique and not empty")
        names.add(node.name)
        for name in filter(None, node.inputs):
            if name not in defined:
                raise _fail(node, f"reads `{name}`, which nothing before it defines")
        check_node(node, part.values)
        for name in node.outputs:
            if name in defined:
                raise _fail(node, f"writes `{name}`, which is defined already")
            defined.add(name)
    for name in part.outputs:
        if name not in defined or part.values[name].kind in ("weight", "const"):
            raise VerifyError("verify", f"{where}: output `{name}` should be computed by a node")
    _check_caches(part)


def _check_const(value: Value) -> None:
    """A constant has as many elements as its shape says, and a dtype that `data` can hold."""
    if value.kind not in ("input", "weight", "const", "temp"):
        raise VerifyError("verify", f"value `{value.name}` has the unknown kind `{value.kind}`")
    if value.kind != "const":
        return
    if value.dtype not in ("f32", "i64") or any(isinstance(d, str) for d in value.shape):
        raise VerifyError("verify", f"constant `{value.name}` should be f32 or i64 of fixed shape, is {value.dtype}")
    wanted = math.prod(d for d in value.shape if isinstance(d, int))
    if len(value.data) != wanted:
        raise VerifyError("verify", f"constant `{value.name}` should hold {wanted} elements, holds {len(value.data)}")


def _check_caches(part: Part) -> None:
    """Every cache is what a node asks for (spec/caches.py), and no two nodes ask for the same."""
    where = f"part for `{part.backend}`"
    specs = {key(spec): spec for spec in part.caches}
    if len(specs) != len(part.caches):
        raise VerifyError("verify", f"{where}: two caches have the same layer and kind")
    for node in part.nodes:
        for wanted in caches_of(node, part.values):
            spec = specs.pop(key(wanted), None)
            if spec is None:
                raise _fail(node, f"layer {wanted.layer} has no cache of kind `{wanted.kind}` of its own in the part")
            if spec != wanted:
                raise _fail(node, f"its cache should be {wanted}, is {spec}")
    if specs:
        layer, kind = min(specs)
        raise VerifyError("verify", f"{where}: no node uses the cache of layer {layer}, kind `{kind}`")
