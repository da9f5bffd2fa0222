"""The operator set, version 1: one row per operator. A candidate, ours; no published standard is claimed.

Shapes: T tokens of all sequences (or R of them, after `take_rows`), `n` any width, `D` head size, `Hq`/`Hkv` heads.
All activations are f32; a weight has any format of spec/formats.py. A trailing `?` marks an optional input, and an
attribute whose text says `default` may be absent. `E` experts; `experts` marks a stack of weights, `[E, out, in]`.
`reference.py` holds the NumPy definition under the same name; `tolerance.py` the bound per class.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OPSET_VERSION = 1


@dataclass(frozen=True)
class Op:
    """One row: what the operator takes, gives and means."""

    name: str
    tier: str  # core: a chip needs it; fused: a backend may claim it
    inputs: tuple[str, ...]  # `name[shape] dtype`, `?` = optional, `*` = one or more
    outputs: tuple[str, ...]
    attrs: dict[str, str] = field(default_factory=dict)  # name -> type and meaning
    meaning: str = ""
    onnx: str = ""  # the stock form in graph.onnx
    tolerance: str = "f32"  # class in tolerance.py


CORE = (
    Op("embedding", "core", ("ids[T] i64", "weight[vocab,n] format"), ("y[T,n] f32",),
       meaning="y[t] = weight[ids[t]], dequantised", onnx="Gather-13 on the (dequantised) matrix", tolerance="exact"),
    Op("linear", "core", ("x[T,in] f32", "weight[out,in] format", "bias[out]? plain"), ("y[T,out] f32",),
       meaning="y = x @ weight.T + bias", onnx="Transpose-25 + MatMul-13 (+ Add-14)", tolerance="linear"),
    Op("rms_norm", "core", ("x[T,n] f32", "weight[D] plain"), ("y[T,n] f32",),
       {"eps": "float > 0", "offset": "float, added to the weight: 0 or 1"},
       "per group of D (D divides n): y = x / sqrt(mean(x^2) + eps) * (weight + offset)", "RMSNormalization-23"),
    Op("rope_table", "core", ("positions[T] i64", "inv_freq[D/2] f32 const"), ("cos[T,D/2] f32", "sin[T,D/2] f32"),
       {"scale": "float; multiplies both (yarn's attention factor)"},
       "angle = positions * inv_freq in f32; cos = cos(angle) * scale", "Cast, Unsqueeze, Mul, Cos, Sin (, Mul)"),
    Op("rope", "core", ("x[T,H*D] f32", "cos[T,r/2] f32", "sin[T,r/2] f32"), ("y[T,H*D] f32",),
       {"num_heads": "int H", "interleaved": "int 0: pairs (i, i+r/2); 1: pairs (2i, 2i+1)"},
       "rotates the first r channels of each head, the rest pass", "RotaryEmbedding-23, packed 3-D, no position_ids"),
    Op("attention", "core",
       ("q[T,Hq*D] f32", "k[T,Hkv*D] f32", "v[T,Hkv*Dv] f32", "sinks[Hq]? plain", "slopes[Hq]? plain"),
       ("y[T,Hq*Dv] f32",),
       {"layer": "int, index of the cache", "num_heads": "int Hq", "num_kv_heads": "int Hkv", "scale": "float",
        "window": "int; query i sees keys j with i - j < window; 0: all", "softcap": "float; 0: none",
        "bias": "str, default none; alibi: score - slopes * (i - j); sqrt_alibi: score - slopes * sqrt(i - j)"},
       "write k, v of the new tokens into the paged cache, then causal GQA over each sequence's own cache; a sink is "
       "one more key, of that score and value 0",
       "Attention-25 with past/present, is_causal=1, left_window_size = window - 1; with sinks or slopes the function "
       "datong::Attention", "attention"),
    Op("select_keys", "core", ("q[T,H*D] f32", "k[T,D] f32", "weights[T,H]? f32"), ("chosen[T,G*K] f32",),
       {"layer": "int, index of the cache", "num_heads": "int H", "groups": "int G, divides H", "top_k": "int K",
        "block": "int; neighbouring keys, chosen together", "local": "int, default 0; newest blocks always chosen",
        "scale": "float", "kind": "str: plain or relu"},
       "write k into the paged index cache; per group g: score[j] = sum over its heads h of weights[h] * act(scale * "
       "q[h] . key[j]), the largest of a block's keys j <= own place; chosen: numbers of the K best blocks, ascending, "
       "then -1. Of equals the lowest number. relu: act(z) = max(z, 0)",
       "function datong::SelectKeys (MatMul-13, TopK-24)", "exact"),
    Op("sparse_attention", "core",
       ("q[T,Hq*D] f32", "k[T,Hkv*D] f32", "v[T,Hkv*Dv] f32", "chosen[T,G*K] f32"), ("y[T,Hq*Dv] f32",),
       {"layer": "int, index of the cache", "num_heads": "int Hq", "num_kv_heads": "int Hkv",
        "groups": "int G, divides Hkv", "block": "int; of select_keys", "scale": "float"},
       "as attention, over the keys j <= own place whose j // block is among chosen of the head's group; none: y = 0",
       "function datong::SparseAttention (ScatterElements-18, Softmax-13, MatMul-13)", "attention"),
    Op("latent_attention", "core",
       ("q[T,Hq*D] f32", "latent[T,C] f32", "k_rope[T,Dr] f32", "weight[Hq*E,C] format", "chosen[T,K]? f32"),
       ("y[T,Hq*Dv] f32",),
       {"layer": "int, index of the cache", "num_heads": "int Hq", "plain": "int P; D = P + Dr, E = P + Dv",
        "scale": "float"},
       "write [latent, k_rope] of the new tokens into the paged cache, one row [C + Dr] for all heads; per head h, "
       "weight[h] = [up [P, C], down [Dv, C]]: key j is [up @ latent[j], k_rope[j]], value j is down @ latent[j]; "
       "then causal attention over each sequence's own cache; with chosen, of select_keys with G = 1 and block = 1, "
       "over the keys of these numbers alone, of which a token has one at least",
       "function datong::LatentAttention, in the absorbed form (MatMul-13, Softmax-13, ScatterElements-18)",
       "attention"),
    Op("layer_norm", "core", ("x[T,n] f32", "weight[n] plain", "bias[n]? plain"), ("y[T,n] f32",), {"eps": "float > 0"},
       "y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over each row", "LayerNormalization-17"),
    Op("glu", "core", ("gate[T,n] f32", "up[T,n] f32"), ("y[T,n] f32",),
       {"kind": "str: silu, gelu_tanh, silu_clamp or oai", "limit": "float, default 0; L below",
        "alpha": "float, default 0; of oai"},
       "silu: silu(gate) * up; gelu_tanh: gelu(gate) * up; silu_clamp: min(silu(gate), L) * clip(up, -L, L); "
       "oai: g * sigmoid(alpha * g) * (clip(up, -L, L) + 1) with g = min(gate, L)",
       "Mul(Mul(gate, Sigmoid(gate)), up); Gelu-20 (tanh), Min, Clip-13"),
    Op("add", "core", ("a[T,n] f32", "b[T,n] f32"), ("y[T,n] f32",), meaning="y = a + b", onnx="Add-14",
       tolerance="exact"),
    Op("mul", "core", ("a[T,n] f32", "b[T,n] f32"), ("y[T,n] f32",), meaning="y = a * b", onnx="Mul-14",
       tolerance="exact"),
    Op("sigmoid", "core", ("x[T,n] f32",), ("y[T,n] f32",), meaning="y = 1 / (1 + exp(-x))", onnx="Sigmoid-13"),
    Op("scale", "core", ("x[T,n] f32",), ("y[T,n] f32",), {"factor": "float"},
       "y = x * factor, factor in f32", "Mul-14 with a scalar", tolerance="exact"),
    Op("scale_groups", "core", ("x[T,n] f32", "s[T,g] f32"), ("y[T,n] f32",),
       meaning="each of the g groups of n/g neighbouring channels times its s (gates per head; g = 1: per token)",
       onnx="Reshape, Mul-14, Reshape", tolerance="exact"),
    Op("moe", "core",
       ("x[T,n] f32", "logits[T,E] f32", "gate[E,m,n] experts", "up[E,I,n]? experts", "down[E,n,I] experts",
        "select_bias[E]? plain", "gate_bias[E,m]? plain", "up_bias[E,I]? plain", "down_bias[E,n]? plain"),
       ("y[T,n] f32",),
       {"top_k": "int K", "score": "str: softmax or sigmoid, over all experts", "renorm": "int 0 or 1",
        "scale": "float; of the weights, last", "groups": "int, default 1; of neighbouring experts",
        "top_groups": "int, default 1; groups that may be chosen", "order": "str, default split; halves or pairs",
        "kind": "str: as glu", "limit": "float, default 0", "alpha": "float, default 0"},
       "p = score(logits); experts: top K of p + select_bias, within the top groups by the sum of their two best; "
       "weight: p, divided by the sum of the K if renorm, times scale; y = sum of weight * down(glu(gate(x), up(x))). "
       "Of equals the lowest index. order: split: gate and up apart (m = I); halves, pairs: `gate` holds both "
       "(m = 2 I), the gate being its first rows or its even rows",
       "function datong::MoE (Softmax or Sigmoid, TopK-24, ScatterElements-18, MatMul-13)", "linear"),
    Op("slice", "core", ("x[T,n] f32",), ("y[T,n/group*length] f32",),
       {"group": "int, divides n", "start": "int", "length": "int; start + length <= group"},
       "view x as [T, n/group, group], keep [start : start+length] of the last axis, flatten",
       "Reshape + Slice-13 + Reshape", "exact"),
    Op("concat", "core", ("a[T,groups*m] f32", "b[T,groups*k] f32"), ("y[T,n] f32",), {"groups": "int G >= 1"},
       "each of the G groups of a (m channels) followed by the same group of b (k channels): n = G (m + k)",
       "Reshape, Concat-13, Reshape", "exact"),
    Op("causal_conv", "core", ("x[T,C] f32", "weight[C,K] plain", "bias[C]? plain"), ("y[T,C] f32",),
       {"layer": "int, index of the cache", "kind": "str: none or silu"},
       "per sequence and channel: y[t] = act(bias + sum over j of weight[j] * x[t - (K-1) + j]), x before the sequence "
       "is 0; the last K-1 inputs are the state", "function datong::CausalConv (Concat-13, Conv-22)", "linear"),
    Op("gated_delta", "core",
       ("q[T,Hk*Dk] f32", "k[T,Hk*Dk] f32", "v[T,Hv*Dv] f32", "a[T,Hv] f32", "b[T,Hv] f32", "a_log[Hv] plain",
        "dt_bias[Hv] plain"),
       ("y[T,Hv*Dv] f32",),
       {"layer": "int, index of the cache", "num_k_heads": "int Hk", "num_v_heads": "int Hv", "scale": "float",
        "eps": "float > 0; of the norms"},
       "q, k divided by sqrt(sum(x^2) + eps) per head, q times scale; per value head (key head = head // (Hv / Hk)), "
       "state S [Dk, Dv]: S *= exp(-exp(a_log) * softplus(a + dt_bias)); S += k (sigmoid(b) (v - S^T k))^T; y = S^T q",
       "function datong::GatedDelta (Scan-24)", "state"),
    Op("linear_attention", "core", ("q[T,H*D] f32", "k[T,H*D] f32", "v[T,H*Dv] f32", "slopes[H] plain"),
       ("y[T,H*Dv] f32",), {"layer": "int, index of the cache", "num_heads": "int H", "scale": "float"},
       "per head, state S [D, Dv]: S = exp(-slope) S + k v^T; y = scale S^T q",
       "function datong::LinearAttention (Scan-24)", "state"),
    Op("take_rows", "core", ("x[T,n] f32", "rows[R] i64"), ("y[R,n] f32",),
       meaning="y[r] = x[rows[r]]; the compiler's, so that logits are computed only where asked", onnx="Gather-13",
       tolerance="exact"),
)  # fmt: skip

FUSED = (
    Op("add_rms_norm", "fused", ("a[T,n] f32", "b[T,n] f32", "weight[n] plain"), ("sum[T,n] f32", "y[T,n] f32"),
       {"eps": "float > 0", "offset": "float"}, "sum = a + b; y = rms_norm(sum, weight)", "add, rms_norm"),
    Op("linear_multi", "fused", ("x[T,in] f32", "weight[out_i,in] format *", "bias[out_i]? plain *"),
       ("y_i[T,out_i] f32 *",), {"count": "int N; inputs are x, N weights, N biases (absent: '')"},
       "N linears that share their input (q, k, v)", "linear x N", "linear"),
    Op("linear_glu", "fused", ("x[T,in] f32", "gate[n,in] format", "up[n,in] format"), ("y[T,n] f32",),
       {"kind": "str: silu"}, "y = silu(x @ gate.T) * (x @ up.T)", "linear x 2, glu", "linear"),
    Op("linear_add", "fused", ("x[T,in] f32", "weight[out,in] format", "residual[T,out] f32", "bias[out]? plain"),
       ("y[T,out] f32",), meaning="y = x @ weight.T + bias + residual", onnx="linear, add", tolerance="linear"),
)  # fmt: skip

OPS: dict[str, Op] = {op.name: op for op in (*CORE, *FUSED)}
