"""Operators with a state per sequence: causal_conv, gated_delta, linear_attention. Their states and sums are f32.

Neighbouring sequences with as many new tokens each are one batch `[B, n, …]`: a step that decodes is one batch. New
tokens are walked in chunks: inside one, every token's share of every later one comes from products of matrices, and
only the state goes from chunk to chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from datong.backends.torch.builder import Builder
from datong.backends.torch.frame import Frame
from datong.spec.caches import caches_of
from datong.spec.program import Node

# Tokens of a chunk: products inside it grow with it, steps from chunk to chunk shrink. Measured with 8 heads of 128
# channels, 512 new tokens, one thread of an AMD EPYC: linear 6.2 ms by 32, 6.1 by 64, 7.5 by 128, 11 by 256; delta,
# which inverts a triangle of this size, 13 by 16, 13 by 32, 20 by 64, 39 by 128, 61 token by token.
LINEAR_CHUNK, DELTA_CHUNK = 64, 32

Inner = Callable[..., tuple[Tensor, Tensor]]  # (state [B, …], inputs [B, n, width]) -> y [B, n, width], state


def causal_conv(node: Node, builder: Builder) -> str:
    """The taps one by one, each over all tokens and channels."""
    weight = builder.weights.get(node.inputs[1], torch.float32)
    taps = [weight[:, j].contiguous() for j in range(weight.shape[1])]
    bias = None if len(node.inputs) < 3 or not node.inputs[2] else builder.weights.get(node.inputs[2], torch.float32)
    silu = node.attrs["kind"] == "silu"

    def inner(state: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        new = x.shape[1]
        line = torch.cat([state[:, 0].transpose(1, 2), x], 1)  # [B, K-1 + n, C]
        y = line[:, :new] * taps[0]
        for j, tap in enumerate(taps[1:], start=1):
            y = torch.addcmul(y, line[:, j : j + new], tap)
        y = y if bias is None else y + bias
        return functional.silu(y) if silu else y, line[:, new:].transpose(1, 2)[:, None]

    _emit(node, builder, inner)
    return "torch mul, addcmul"


# ---- linear attention ---------------------------------------------------------------------------------------------


def linear_attention(node: Node, builder: Builder) -> str:
    """In chunks; the decay between two tokens is a power that depends on their distance alone."""
    heads, scale = int(str(node.attrs["num_heads"])), float(str(node.attrs["scale"]))
    slopes = _vector(builder, node.inputs[3])
    place = torch.arange(LINEAR_CHUNK, dtype=torch.float32, device=slopes.device)
    behind = place[:, None] - place
    within = torch.exp(-slopes[:, None, None] * behind).masked_fill(behind < 0, 0.0)  # [H, L, L]
    since = torch.exp(-slopes[:, None] * (place + 1))[:, :, None]  # [H, L, 1], from the state to each token
    until = torch.exp(-slopes[:, None] * (LINEAR_CHUNK - 1 - place))[:, :, None]  # from each token to the last

    def inner(state: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (_heads(x, heads) for x in (q, k, v))  # [B, H, n, D]
        results = []
        for start in range(0, q.shape[2], LINEAR_CHUNK):
            size = min(LINEAR_CHUNK, q.shape[2] - start)
            qc, kc, vc = (x.narrow(2, start, size) for x in (q, k, v))
            mixed = torch.matmul(qc, kc.transpose(2, 3)) * within[:, :size, :size]
            results.append(torch.matmul(mixed, vc) + torch.matmul(qc * since[:, :size], state))
            late = kc * until[:, LINEAR_CHUNK - size :]
            state = state * since[:, size - 1 : size] + torch.matmul(late.transpose(2, 3), vc)
        y = results[0] if len(results) == 1 else torch.cat(results, 2)
        return _packed(y * scale), state

    _emit(node, builder, inner)
    return "torch matmul, in chunks"


# ---- gated delta rule ---------------------------------------------------------------------------------------------


def gated_delta(node: Node, builder: Builder) -> str:
    """One token at a time where there is one, else in chunks."""
    k_heads, v_heads = (int(str(node.attrs[name])) for name in ("num_k_heads", "num_v_heads"))
    scale, eps = (float(str(node.attrs[name])) for name in ("scale", "eps"))
    rate, shift = -torch.exp(_vector(builder, node.inputs[5])), _vector(builder, node.inputs[6])
    chunk = _Chunk(DELTA_CHUNK, rate.device)

    def unit(x: Tensor) -> Tensor:
        """[B, n, Hk*D] -> [B, Hv, n, D], each head divided by its length."""
        grid = x.reshape(*x.shape[:2], k_heads, -1)
        grid = grid * torch.rsqrt((grid * grid).sum(3, keepdim=True) + eps)
        if k_heads != v_heads:
            batch, new, _, dim = grid.shape
            grid = grid[:, :, :, None].expand(batch, new, k_heads, v_heads // k_heads, dim)
            grid = grid.reshape(batch, new, v_heads, dim)
        return grid.transpose(1, 2)

    def inner(state: Tensor, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = unit(q) * scale, unit(k), _heads(v, v_heads)
        decay = (functional.softplus(a + shift) * rate).transpose(1, 2)  # [B, Hv, n], logarithm
        beta = torch.sigmoid(b).transpose(1, 2)[..., None]
        if q.shape[2] > 1:
            y, state = chunk.walk(state, q, k, v, decay, beta)
            return _packed(y), state
        state = state * torch.exp(decay)[..., None]
        wrong = (v - torch.matmul(k, state)) * beta
        state = state + torch.matmul(k.transpose(2, 3), wrong)
        return _packed(torch.matmul(q, state)), state

    _emit(node, builder, inner)
    return "torch matmul, in chunks"


class _Chunk:
    """The gated delta rule over chunks of `size` tokens (a power of two).

    With G the sums of the logarithms of the decay inside a chunk and S the state before it, the corrections u of the
    state and what it gives are
        u[t] = beta[t] (v[t] - exp(G[t]) S^T k[t] - sum over i < t of exp(G[t] - G[i]) (k[i] . k[t]) u[i])
        y[t] = exp(G[t]) S^T q[t] + sum over i <= t of exp(G[t] - G[i]) (k[i] . q[t]) u[i]
        S    = exp(G[last]) S + sum of exp(G[last] - G[i]) k[i] u[i]^T
    The first is a triangular system, whose inverse needs no S: it is taken for all chunks at once.
    Source: Yang et al. 2024 (DeltaNet), section 3; the inverse by halves is the textbook's.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        place = torch.arange(size)
        self.later = (place[:, None] < place).to(device)  # [L, L], true where i > t
        self.own = torch.eye(size, device=device)
        # at each level, the blocks below the diagonal that join two inverted blocks of `half` rows
        halves = [1 << level for level in range(size.bit_length() - 1)]
        joined = [(place[:, None] // h % 2 == 1) & (place // h == place[:, None] // h - 1) for h in halves]
        self.levels = [mask.to(torch.float32).to(device) for mask in joined]

    def walk(
        self, state: Tensor, q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Q, k [B, H, n, Dk], v [B, H, n, Dv], decay [B, H, n], beta [B, H, n, 1] -> y [B, H, n, Dv], state."""
        new, count = q.shape[2], -(-q.shape[2] // self.size)
        q, k, v, beta = (self._cut(x, count) for x in (q, k, v, beta))  # [B, H, chunks, L, D]
        total = torch.cumsum(self._cut(decay[..., None], count), 3)  # G, [B, H, chunks, L, 1]
        between = torch.exp((total - total.transpose(3, 4)).masked_fill(self.later, float("-inf")))
        inverse = self._inverse(torch.matmul(k, k.transpose(3, 4)) * between * beta)
        values = torch.matmul(inverse, v * beta)
        reads = torch.matmul(inverse, k * (beta * torch.exp(total)))
        mixed = torch.matmul(q, k.transpose(3, 4)) * between
        queries, late = q * torch.exp(total), k * torch.exp(total[:, :, :, -1:] - total)
        last = torch.exp(total[:, :, :, -1:])
        results = []
        for c in range(count):
            u = values[:, :, c] - torch.matmul(reads[:, :, c], state)
            results.append(torch.matmul(queries[:, :, c], state) + torch.matmul(mixed[:, :, c], u))
            state = state * last[:, :, c] + torch.matmul(late[:, :, c].transpose(2, 3), u)
        y = results[0] if count == 1 else torch.cat(results, 2)
        return y.narrow(2, 0, new), state

    def _cut(self, x: Tensor, count: int) -> Tensor:
        """[B, H, n, D] -> [B, H, count, size, D], zeros behind the last: they neither decay nor write."""
        more = count * self.size - x.shape[2]
        x = functional.pad(x, (0, 0, 0, more)) if more else x
        return x.reshape(*x.shape[:2], count, self.size, x.shape[3])

    def _inverse(self, products: Tensor) -> Tensor:
        """Of 1 + the part below the diagonal of `products` [..., L, L]: inverses of blocks, joined two by two."""
        found = self.own
        for mask in self.levels:
            found = found - torch.matmul(torch.matmul(found, products * mask), found)
        return found


# ---- what they share ----------------------------------------------------------------------------------------------


def _vector(builder: Builder, name: str) -> Tensor:
    """A parameter per head, f32."""
    if builder.part.values[name].kind == "const":
        return builder.weights.constant(name)
    return builder.weights.get(name, torch.float32)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, n, H*D] -> [B, H, n, D]."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _packed(x: Tensor) -> Tensor:
    """[B, H, n, D] -> [B, n, H*D]."""
    return x.transpose(1, 2).flatten(2)


def runs(frame: Frame) -> Iterator[tuple[int, int, int, int]]:
    """Neighbours with as many new tokens each: (first row, first sequence, sequences, new tokens of each)."""
    row, first = 0, 0
    new = frame.whole.new if frame.whole is not None else ()
    while first < len(new):
        count = 1
        while first + count < len(new) and new[first + count] == new[first]:
            count += 1
        if new[first]:
            yield row, first, count, new[first]
        row, first = row + count * new[first], first + count


def _emit(node: Node, builder: Builder, inner: Inner) -> None:
    """Add the closure that runs `inner` on each batch, its inputs and states in f32."""
    kinds = {name: value.kind for name, value in builder.part.values.items()}
    sources = [builder.read(name) for name in node.inputs if name and kinds[name] not in ("weight", "const")]
    target, (spec,) = builder.write(node.outputs[0]), caches_of(node, builder.part.values)
    key, dtype, width = (spec.layer, spec.kind), builder.dtype, builder.width(node.outputs[0])

    def run(frame: Frame) -> None:
        assert frame.cache is not None and frame.slots is not None and frame.began is not None
        inputs, states, results = [frame.registers[source] for source in sources], frame.cache.states[key], []
        rows = 0
        for row, first, count, new in runs(frame):
            rows = row + count * new
            own = [x.narrow(0, row, count * new).view(count, new, -1).to(torch.float32) for x in inputs]
            slots = frame.slots.narrow(0, first, count)
            fresh = frame.began.narrow(0, first, count).view(-1, 1, 1, 1) == 0
            y, after = inner(states.index_select(0, slots).masked_fill(fresh, 0.0), *own)
            _store(states, slots, after)
            results.append(y.reshape(count * new, -1).to(dtype))
        if rows < frame.tokens:  # padding
            results.append(torch.zeros((frame.tokens - rows, width), dtype=dtype, device=states.device))
        frame.registers[target] = results[0] if len(results) == 1 else torch.cat(results)

    builder.emit(run)


def _store(states: Tensor, slots: Tensor, after: Tensor) -> None:
    if slots.dtype is torch.int64:
        states.index_copy_(0, slots, after.contiguous())
    else:  # index_copy_ takes no i32
        states[slots] = after
