"""What nodes must read and compute, against counts by hand."""

from datong.engine.costs import Cost, Shape, cost, shapes
from datong.spec.program import ROWS, TOKENS, CacheSpec, Node, Piece, Value


def _weight(name: str, shape: tuple[int, ...], length: int, fmt: str = "q8_0") -> Value:
    return Value(name, "weight", "f32", shape, fmt, (Piece("codes", "w", 0, length, "i8", shape),))


VALUES = {
    "x": Value("x", "temp", "f32", (TOKENS, 64)),
    "y": Value("y", "temp", "f32", (TOKENS, 32)),
    "logits": Value("logits", "temp", "f32", (ROWS, 32)),
    "w": _weight("w", (32, 64), 2176),
    "p": _weight("p", (32, 64), 8192, "f32"),
    "experts": _weight("experts", (8, 32, 64), 8 * 2176),
    "table": _weight("table", (100, 64), 6800),
}


def _cost(op: str, weight: str, shape: Shape, exact: bool = False, out: str = "y", **attrs: int) -> Cost:
    return cost(Node(op, op, ("x", weight), (out,), attrs), VALUES, (), shape, exact)


def test_a_matrix_is_read_once_and_multiplied_with_every_token() -> None:
    shape = Shape(5, 1, 9)
    assert _cost("linear", "w", shape) == Cost(2176, 2 * 5 * 32 * 64, 0)
    assert _cost("linear", "w", shape, exact=True) == Cost(2176, 0, 2 * 5 * 32 * 64)
    assert _cost("linear", "p", shape) == Cost(8192, 0, 2 * 5 * 32 * 64)
    assert _cost("linear", "w", shape, out="logits") == Cost(2176, 2 * 32 * 64, 0)
    assert _cost("linear", "w", Shape(5, 0, 9), out="logits") == Cost()
    assert _cost("linear", "w", Shape(1, 1, 9, sequences=3)) == Cost(2176, 2 * 3 * 32 * 64, 0)


def test_of_experts_those_that_are_chosen_count_and_of_a_table_its_rows() -> None:
    one = _cost("moe", "experts", Shape(1, 1, 1), top_k=2)
    assert (round(one.bytes), one.integer) == (2 * 2176, 2 * 2 * 32 * 64)
    many = _cost("moe", "experts", Shape(1000, 1, 1000), top_k=2)
    assert round(many.bytes) == 8 * 2176
    assert _cost("embedding", "table", Shape(5, 1, 9)) == Cost(bytes=5 * 68)


def test_attention_sees_the_past_or_its_window() -> None:
    node = Node("attention", "a", ("x", "x", "x"), ("y",), {"layer": 3, "num_heads": 4})
    full = CacheSpec(3, "full", 2, 16, 8)
    assert cost(node, VALUES, (full,), Shape(3, 1, 10, "f16"), False) == Cost(
        10 * 2 * 24 * 2, 0, 2 * (8 + 9 + 10) * 4 * 24
    )
    window = CacheSpec(3, "window", 2, 16, 8, window=4)
    assert cost(node, VALUES, (window,), Shape(3, 1, 10, "f32"), False) == Cost(6 * 2 * 24 * 4, 0, 2 * 12 * 4 * 24)
    assert cost(node, VALUES, (CacheSpec(2, "full", 2, 16, 8),), Shape(3, 1, 10), False) == Cost()


def test_a_latent_row_is_read_once_and_chosen_keys_alone_are_seen() -> None:
    caches = (CacheSpec(3, "latent", 1, 40, 32), CacheSpec(3, "index", 1, 16, 0))
    values = VALUES | {"chosen": Value("chosen", "temp", "f32", (TOKENS, 4))}
    shape = Shape(3, 1, 10, "f16")
    node = Node("latent_attention", "a", ("x", "x", "x", "x"), ("y",), {"layer": 3, "num_heads": 5})
    assert cost(node, values, caches, shape, False) == Cost(10 * 40 * 2, 0, 2 * (8 + 9 + 10) * 5 * 72)
    sparse = Node("latent_attention", "a", ("x", "x", "x", "x", "chosen"), ("y",), {"layer": 3, "num_heads": 5})
    assert cost(sparse, values, caches, shape, False) == Cost(10 * 40 * 2, 0, 2 * 12 * 5 * 72)
    assert cost(sparse, values, caches, Shape(1, 1, 10), False) == Cost(4 * 40 * 2, 0, 2 * 4 * 5 * 72)
    select = Node("select_keys", "a", ("x", "x"), ("y",), {"layer": 3, "num_heads": 6})
    assert cost(select, values, caches, shape, False) == Cost(10 * 16 * 2, 0, 2 * (8 + 9 + 10) * 6 * 16)
    blocks = Node(
        "sparse_attention",
        "a",
        ("x", "x", "x", "chosen"),
        ("y",),
        {"layer": 3, "num_heads": 8, "groups": 2, "block": 3},
    )
    full = (CacheSpec(3, "full", 2, 16, 8),)
    assert cost(blocks, values, full, Shape(1, 1, 10), False) == Cost(6 * 2 * 24 * 2, 0, 2 * 6 * 8 * 24)


def test_a_state_counts_for_its_own_operator() -> None:
    caches = (CacheSpec(3, "conv", 1, 7, 3), CacheSpec(3, "recurrent", 2, 16, 8))
    found = [cost(Node(op, "a", ("x",), ("y",), {"layer": 3}), VALUES, caches, Shape(5, 1, 9), False)
             for op in ("causal_conv", "gated_delta")]  # fmt: skip
    assert found == [Cost(8 * 21, 0, 4 * 21 * 5), Cost(8 * 256, 0, 4 * 256 * 5)]


def test_steps_of_a_prompt() -> None:
    assert shapes(0, 300, 128, "f16") == [Shape(128, 0, 128), Shape(128, 0, 256), Shape(44, 1, 300)]
