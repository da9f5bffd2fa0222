"""Every rule of a simulated chip, broken on purpose, and what is allowed. The code under test runs in a process of its
own with one chip in it, as a worker does: `chip("ascend-910b")("torch.ones(2, device=D)")`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from datong.chips.load import find

ALL = ["ascend-910b", "biren-br1xx", "biren-br2xx", "enflame-s60", "iluvatar-bi-v150", "metax-c500",
       "moorethreads-s5000"]  # fmt: skip
BOTH = ["ascend-910b", "iluvatar-bi-v150"]  # one of each kind: PrivateUse1, and like CUDA
SHELL = """
import ast, json, os, sys
import numpy as np, torch
from torch.nn import functional as F
from datong.backends.sim.install import install
from datong.chips.load import find
from datong.errors import RuleBroken
torch.set_num_threads(1)
card = install(find(sys.argv[1]), "sim:" + sys.argv[1], without=frozenset(sys.argv[2:]))
D, meter, torch_ns = card.device, card.meter, getattr(torch, card.device.type)
names = dict(globals())
for line in sys.stdin:
    code = ast.parse(json.loads(line))
    last = code.body.pop() if isinstance(code.body[-1], ast.Expr) else None
    scope = dict(names)
    try:
        exec(compile(code, "test", "exec"), scope)
        value = eval(compile(ast.Expression(last.value), "test", "eval"), scope) if last else None
        reply = ["value", repr(value)]
    except Exception as error:
        reply = [type(error).__name__, str(error)]
    value = scope = error = None
    print(json.dumps(reply), flush=True)
os._exit(0)
"""

Run = Callable[[str], object]


class Shell:
    """A process with one simulated chip."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SHELL, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, code: str) -> object:
        """The value of the last line."""
        kind, text = self.ask(code)
        assert kind == "value", f"{kind}: {text}"
        return ast.literal_eval(text)

    def broken(self, code: str) -> str:
        """The sentence of the rule that the code breaks."""
        kind, text = self.ask(code)
        assert kind == "RuleBroken", f"{kind}: {text}"
        return text

    def ask(self, code: str) -> tuple[str, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()
        kind, text = json.loads(self._process.stdout.readline())
        return kind, text

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="session")
def chip() -> Iterator[Callable[..., Shell]]:
    """`chip(name, *operators taken away)`: started once."""
    shells: dict[tuple[str, ...], Shell] = {}

    def get(*arguments: str) -> Shell:
        if arguments not in shells:
            shells[arguments] = Shell(*arguments)
        return shells[arguments]

    yield get
    for shell in shells.values():
        shell.close()


Chips = Callable[..., Shell]

# ---- the device and its name ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_it_is_called_as_the_vendor_calls_it(chip: Chips, name: str) -> None:
    adapter = find(name).stack.adapter
    run = chip(name)
    assert run("str(D)") == f"{adapter.device.value}:0"
    assert run(f"str(torch.ones(2, device='{adapter.device.value}').device)") == f"{adapter.device.value}:0"
    assert run(f"{adapter.namespace.value}.device_count(), {adapter.namespace.value}.is_available()") == (1, True)
    if adapter.module.value:
        assert run(f"import {adapter.module.value} as m\nm.is_available()") is True
    title = find(name).generation.title
    assert run("torch_ns.get_device_name(), torch_ns.get_device_properties(0).name") == (f"{title} (simulated)",) * 2


def test_a_vendor_build_of_torch_shows_its_suffix(chip: Chips) -> None:
    suffix = find("metax-c500").stack.identity.torch_version_suffix.value
    assert suffix
    assert suffix in str(chip("metax-c500")("str(torch.__version__)"))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("mode", ["torch.no_grad()", "torch.inference_mode()"])
def test_it_computes_as_the_host_does(chip: Chips, name: str, mode: str) -> None:
    """The same program on both, with views, writes through views, factories and composite operators."""
    code = f"""
def program(d):
    with {mode}:
        x = torch.arange(24, dtype=torch.float32, device=d).reshape(4, 6) / 7
        w = torch.linspace(-1, 1, 18, device=d).view(3, 6)
        y = F.linear(x, w, torch.tensor([1.0, 2.0, 3.0], device=d))
        z = F.rms_norm(y, (3,), torch.ones(3, device=d)) + F.silu(y) * torch.full((3,), 0.5, device=d)
        z[1:3, 0] = z[0, 1:]
        z.t()[2].mul_(2)
        i = torch.tensor([2, 0], device=d)
        z[i] = z[i] + 1
        z.index_copy_(0, i, z[:2].clone())
        q = z.view(1, 1, 4, 3)
        a = F.scaled_dot_product_attention(q, q, q, is_causal=True)
        b = torch.cat([a, q], dim=-1).to(torch.bfloat16).float()
        c = torch.where(b > 0, b, torch.zeros_like(b)).cumsum(-1).topk(2).values
        return (c.sum(-1).squeeze() + torch.eye(4, device=d)[0]).cpu()
torch.equal(program("cpu"), program(D))
"""
    assert chip(name)(code) is True


@pytest.mark.parametrize("name", BOTH)
def test_views_share_memory_and_results_do_not(chip: Chips, name: str) -> None:
    code = """
x = torch.zeros(4, 8, device=D)
before = meter.used
rows = [x[1], x.view(-1), x.t(), x.unbind(0)[1], x.detach(), x.expand(2, 4, 8)]
shared = meter.used - before
rows[0].fill_(3)
y = x + 1
(shared, meter.used - before, [r.sum().item() for r in rows], y.sum().item())
"""
    assert chip(name)(code) == (0, 128, [24.0, 24.0, 24.0, 24.0, 24.0, 48.0], 56.0)


# ---- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ascend-910b", "enflame-s60", "iluvatar-bi-v150", "moorethreads-s5000"])
@pytest.mark.parametrize(
    "code",
    [
        "torch.ones(2, dtype=torch.float64, device=D)",
        "torch.ones(2, dtype=torch.float64).to(D)",
        "torch.from_numpy(np.ones(2)).to(D)",
        "torch.ones(2, device=D).double()",
        "torch.ones(2, device=D).sum(dtype=torch.float64)",
        "torch.tensor([1.0], dtype=torch.float64, device=D)",
    ],
)
def test_fp64_tensor(chip: Chips, name: str, code: str) -> None:
    text = chip(name).broken(code)
    fact = find(name).generation.illegal_dtypes
    assert text.startswith(f"[sim:{name}] `aten::")
    assert f"{find(name).generation.title} has" in text
    assert "the output is f64" in text
    assert f"({fact.grade}: {fact.source})" in text


def test_fp64_is_legal_where_the_vendor_has_it(chip: Chips) -> None:
    assert chip("metax-c500")("torch.ones(2, dtype=torch.float64, device=D).sum().item()") == 2.0


def test_int64_on_enflame_needs_its_switch(chip: Chips) -> None:
    text = chip("enflame-s60").broken("torch.arange(4, device=D)")
    assert "`aten::arange` should use i64" in text
    assert "only with TORCH_GCU_ENABLE_INT64_AND_UINT64=1 set, the output is i64 (B: " in text
    assert chip("enflame-s60")("torch.arange(4, dtype=torch.int32, device=D).tolist()") == [0, 1, 2, 3]
    text = chip("enflame-s60").broken("torch.ones(3, device=D).argmax()")
    assert "`aten::argmax` should use i64" in text


@pytest.mark.parametrize("name", BOTH)
def test_an_operator_removed_from_coverage(chip: Chips, name: str) -> None:
    without = chip(name, "aten::mm", "aten::silu")
    text = without.broken("F.linear(torch.ones(2, 3, device=D), torch.ones(4, 3, device=D))")
    title = find(name).generation.title
    assert text.startswith(f"[sim:{name}] `aten::mm` should be an operator that {title} runs, it is not (taken away")
    assert "`aten::silu`" in without.broken("F.silu(torch.ones(2, device=D))")
    assert chip(name)("F.silu(torch.zeros(2, device=D)).tolist()") == [0.0, 0.0]


@pytest.mark.parametrize("name", BOTH)
def test_memory_one_byte_short(chip: Chips, name: str) -> None:
    """The last byte fits; one more is refused, with the numbers; freed memory is free."""
    code = """
total, meter.total = meter.total, meter.used + 1000
held = torch.empty(600, dtype=torch.uint8, device=D)
info = torch_ns.mem_get_info()
try:
    torch.empty(401, dtype=torch.uint8, device=D)
except RuleBroken as error:
    text = str(error)
last = torch.empty(400, dtype=torch.uint8, device=D)
full = torch_ns.mem_get_info()[0]
try:
    held + held
except RuleBroken as error:
    second = str(error)
del held
again = torch.empty(600, dtype=torch.uint8, device=D)
meter.total, limit = total, meter.total
(text, info[0], full, second, limit)
"""
    text, free, full, second, limit = chip(name)(code)  # type: ignore[misc]
    assert f"`aten::empty` should fit into the {limit} bytes of {find(name).generation.title}" in text
    assert f"it wants 401 bytes, {limit - 400} are in use, 1 too many" in text
    assert (free, full) == (400, 0)
    assert "`aten::add` should fit into" in second


def test_more_than_the_card_has_is_refused_before_the_host_makes_room(chip: Chips) -> None:
    fact = find("ascend-910b").generation.memory_bytes
    text = chip("ascend-910b").broken("torch.zeros(2**50, device=D)")
    assert f"should fit into the {fact.value} bytes of" in text
    assert f"({fact.grade}: {fact.source})" in text


WAITS = {
    "x.cpu()": "aten::_to_copy",
    "x.to('cpu')": "aten::_to_copy",
    "x.sum().item()": "aten::_local_scalar_dense",
    "float(x[0])": "aten::_local_scalar_dense",
    "bool(x.sum() > 1)": "aten::_local_scalar_dense",
    "x.tolist()": "aten::_to_copy",
    "x.nonzero()": "aten::nonzero",
    "x[x > 1]": "aten::index",
    "x.masked_select(x > 1)": "aten::masked_select",
    "x[x > 1] = torch.ones(2, device=D)": "aten::index_put_",
    "torch.zeros(3).copy_(x)": "aten::copy_",
    "torch.equal(x, x)": "aten::equal",
    "x.unique()": "aten::_unique2",
    "torch_ns.synchronize()": "synchronize",
    "torch_ns.current_stream().synchronize()": "Stream.synchronize",
}


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("code", WAITS)
def test_the_host_may_not_wait_within_a_step(chip: Chips, name: str, code: str) -> None:
    run = chip(name)
    text = run.broken(f"x = torch.tensor([1.0, 2.0, 3.0], device=D)\nwith card.step():\n    {code}")
    assert f"`{WAITS[code]}` should run without the host waiting" in text
    assert "hint: " in text
    assert run(f"x = torch.tensor([1.0, 2.0, 3.0], device=D)\n{code}\nFalse") is False  # outside it may
    assert run(f"with card.step():\n    pass\nx = torch.tensor([1.0, 2.0, 3.0], device=D)\n{code}\nFalse") is False


def test_what_a_step_may_do(chip: Chips) -> None:
    code = """
x, i = torch.ones(3, 2, device=D), torch.tensor([1, 0], device=D)
with card.step():
    x.copy_(torch.full((3, 2), 2.0))
    y = x[i] + x[0] * 2 + torch.tensor(1.0)
    y[y > 6] = 0.0
    y = y.masked_fill(y > 100, 1.0).to(torch.bfloat16)
    torch_ns.Event().record()
y.tolist()
"""
    assert chip("ascend-910b")(code) == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("code", ["x + torch.ones(3)", "torch.ones(3) * x", "torch.cat([x, torch.ones(1)])",
                                  "x.add_(torch.ones(3))", "torch.dot(x, torch.ones(3))"])  # fmt: skip
def test_operands_of_both_sides(chip: Chips, name: str, code: str) -> None:
    text = chip(name).broken(f"x = torch.ones(3, device=D)\n{code}")
    assert "should have all operands on the device, an operand of shape [" in text
    assert "is in host memory" in text


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("code", ["x.numpy()", "np.asarray(x)"])
def test_the_host_cannot_read_device_memory(chip: Chips, name: str, code: str) -> None:
    text = chip(name).broken(f"x = torch.ones(3, device=D)\n{code}")
    assert "`aten::numpy` should read host memory" in text


def test_printing_a_tensor_is_no_synchronisation(chip: Chips) -> None:
    text = chip("ascend-910b")("x = torch.ones(3, device=D)\nwith card.step():\n    t = repr(x)\nt")
    assert text == "tensor(..., device='npu:0', size=(3,), dtype=torch.float32)"


def test_cache_block_16_on_biren(chip: Chips) -> None:
    """The vendor's attention takes blocks of 128 tokens; the program says 16."""
    code = """
from suattention import flash_attn_with_kvcache
q = torch.ones(1, 2, 64, dtype=torch.bfloat16, device=D)
cache = torch.ones(4, {block}, 2, 64, dtype=torch.bfloat16, device=D)
starts = torch.tensor([0, 1], dtype=torch.int32, device=D)
length = torch.tensor([3], dtype=torch.int32, device=D)
table = torch.zeros(1, 2, dtype=torch.int32, device=D)
y = flash_attn_with_kvcache(q, cache, cache, cu_seqlens_q=starts, max_seqlen_q=1, cache_seqlens=length,
      page_table=table, causal=False)
y is not None
"""
    text = chip("biren-br2xx").broken(code.format(block=16))
    fact = find("biren-br2xx").generation.kv_block_sizes
    assert text.startswith("[sim:biren-br2xx] `suattention.flash_attn_with_kvcache` should have cache blocks of 128")
    assert f"they have 16 ({fact.grade}: {fact.source})" in text
    assert chip("biren-br2xx")(code.format(block=128)) is True


def test_a_renamed_parameter_of_a_vendor_operator(chip: Chips) -> None:
    run = chip("ascend-910b")
    code = "import torch_npu\nx = torch.ones(2, 4, device=D)\ntorch_npu.npu_rms_norm(x, x[0], {}=1e-6)[0].tolist()"
    assert run(code.format("epsilon")) == [[pytest.approx(1, abs=1e-5)] * 4] * 2
    kind, text = run.ask(code.format("eps"))
    assert (kind, "npu_rms_norm() " in text) == ("RuntimeError", True) or "Unknown keyword argument 'eps'" in text


# ---- within a real step: what a lowering that breaks a rule would meet -----------------------------------------------

STEP = """
import json, sys
import numpy as np, torch
from datong.backends.sim import tensor
from datong.backends.sim.backend import make
from datong.chips.load import find
from datong.errors import RuleBroken
from datong.spec.program import Node, Part, Step, Value
torch.set_num_threads(1)
name = sys.argv[1]
backend = make("sim:" + name, find(name).name, None, frozenset())
card = tensor.card()
values = {n: Value(n, kind, "f32", ("T", 64)) for n, kind in (("a", "input"), ("y", "temp"), ("z", "temp"))}
nodes = (Node("add", "one", ("a", "a"), ("y",)), Node("sigmoid", "two", ("y",), ("z",)))
part = Part(backend.name, values, nodes, ("a",), ("z",), ())
step = Step(np.zeros(8, np.int64), np.arange(8), np.asarray([0, 8]), np.asarray([8]), np.zeros((1, 1), np.int32),
            np.zeros(0, np.int64))

def attempt(closure=None):
    executable = backend.compile(part, "/", {})
    if closure is not None:
        executable._closures.insert(1, closure)
    try:
        out = executable.run(step, None, {"a": np.ones((8, 64), np.float32)})["z"]
    except RuleBroken as error:
        return str(error)
    return float(out.sum())

right = attempt()
card.meter.peak = card.meter.used
attempt()
needed, whole = card.meter.peak, card.meter.total
answers = [right, attempt(lambda frame: frame.ids.cpu())]
answers.append(attempt(lambda frame: torch.zeros(2, device=card.device).double()))
card.meter.total = needed
answers.append(attempt())
card.meter.total = needed - 1
answers.append(attempt())
card.meter.total = whole
answers.append(attempt())
print(json.dumps(answers))
"""


def test_within_a_step() -> None:
    done = subprocess.run([sys.executable, "-c", STEP, "moorethreads-s5000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    right, waits, fp64, fits, short, after = json.loads(done.stdout)
    assert right == fits == after == pytest.approx(512 / (1 + 2.718281828**-2))
    assert waits.startswith("[sim:moorethreads-s5000] `aten::_to_copy` should run without the host waiting")
    assert "should use element types that" in fp64
    assert "is f64 (A: " in fp64
    assert "1 too many (limit of the test)" in short


# ---- graphs ---------------------------------------------------------------------------------------------------------

CAPTURE = """
g = {graph}()
x = torch.ones(4, device=D)
state = torch.zeros(4, device=D)
with {namespace}.graph(g):
    y = x * 2
    z = (y + 1).view(2, 2)
    state.add_(y)
"""


@pytest.mark.parametrize("name", ["ascend-910b", "metax-c500"])
def test_replay_repeats_the_work_on_the_same_memory(chip: Chips, name: str) -> None:
    adapter = find(name).stack.adapter
    code = CAPTURE.format(graph=adapter.graph.value, namespace=adapter.namespace.value)
    code += """
before = (state.tolist(), y.max().item() > 1e30)
g.replay()
first = (z.tolist(), state.tolist())
x.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
g.replay()
(before, first, z.tolist(), state.tolist())
"""
    before, first, z, state = chip(name)(code)  # type: ignore[misc]
    assert before == ([0.0] * 4, True)  # a capture runs nothing: no write, and no result yet
    assert first == ([[3.0, 3.0], [3.0, 3.0]], [2.0] * 4)
    assert (z, state) == ([[3.0, 5.0], [7.0, 9.0]], [4.0, 6.0, 8.0, 10.0])


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        ("x.sum().item()", "`aten::_local_scalar_dense` should be something that a captured graph can hold"),
        ("x.cpu()", "`aten::_to_copy` should be something that a captured graph can hold"),
        ("x.copy_(torch.ones(4))", "`aten::copy_` should be something that a captured graph can hold"),
        ("x[x > 0]", "`aten::index` should be something that a captured graph can hold"),
        ("torch_ns.synchronize()", "`synchronize` should be something that a captured graph can hold"),
    ],
)
def test_what_a_capture_cannot_hold(chip: Chips, code: str, sentence: str) -> None:
    run = chip("ascend-910b")
    text = run.broken(f"x, g = torch.ones(4, device=D), torch.npu.NPUGraph()\nwith torch.npu.graph(g):\n    {code}")
    assert sentence in text
    assert "vllm-ascend" in text  # the source
    assert run("x = torch.ones(4, device=D)\nx.sum().item()") == 4.0  # nothing is left of the broken capture
    kind, text = run.ask("torch.npu.NPUGraph().replay()")
    assert (kind, "should be captured before its replay" in text) == ("DeviceError", True)


def test_memory_of_a_graph_lives_as_long_as_the_graph(chip: Chips) -> None:
    code = """
x = torch.ones(1000, device=D)
before = meter.used
g = torch.npu.NPUGraph()
with torch.npu.graph(g):
    y = ((x + 1) * 2) + 3
held = meter.used - before
g.reset()
freed = meter.used - before
try:
    y + 1
except RuleBroken as error:
    text = str(error)
(held, freed, text)
"""
    held, freed, text = chip("ascend-910b")(code)  # type: ignore[misc]
    assert (held, freed) == (8000, 0)  # two results live at once, at most
    assert "an input was made by a graph that is gone" in text
