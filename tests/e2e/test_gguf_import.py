"""GGUF file -> package -> ONNX Runtime: the logits of the checkpoint that the file was made from.

Files are written here with the official `gguf` package, as llama.cpp's converter writes them (conversion/llama.py,
internlm.py, qwen.py): rows of q and k permuted where the architecture asks for it, Llama 3's rope as a tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from datong.importer.gguf import import_gguf
from datong.importer.gguf.reader import read_gguf
from datong.package.known import find
from datong.package.writer import write_directory

DATA = Path(__file__).resolve().parents[1] / "data"
BOUND = 2e-3  # max |logit difference|; tests/data/goldens/README.md says why


def permute(rows: np.ndarray, heads: int) -> np.ndarray:
    """[heads * dim, …]: from halves to pairs."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def rope_factors(config: dict[str, Any], dim: int) -> np.ndarray:
    """Llama 3's scaling as the converter stores it: what each frequency is divided by, [dim / 2] f32."""
    rope, factors = config["rope_parameters"], []
    low, high = (rope["original_max_position_embeddings"] / rope[f"{end}_freq_factor"] for end in ("low", "high"))
    for i in range(0, dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (i / dim)
        smooth = (rope["original_max_position_embeddings"] / wave - rope["low_freq_factor"]) / (
            rope["high_freq_factor"] - rope["low_freq_factor"]
        )
        mixed = 1 / ((1 - smooth) / rope["factor"] + smooth)
        factors.append(1.0 if wave < high else rope["factor"] if wave > low else mixed)
    return np.array(factors, np.float32)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Some byte-level vocabulary of `size` tokens, the smallest that counts as one."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = [chr(0x4E00 + i) for i in range(size - 1)]
    writer.add_token_list([*tokens, tokens[0] + tokens[1]])
    writer.add_token_types([1] * size)
    writer.add_token_merges([f"{tokens[0]} {tokens[1]}"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def write_gguf(
    path: Path,
    arch: str,
    config: dict[str, Any],
    weights: dict[str, np.ndarray],
    quantise: Callable[[str, np.ndarray], tuple[np.ndarray, Type]] = lambda name, array: (array, Type.F32),
) -> None:
    """Weights by Hugging Face names -> a GGUF file; `quantise` gives the bytes of a matrix, after the permutation."""
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim", config["hidden_size"] // heads)
    rope = config.get("rope_parameters", config)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    add_vocabulary(writer, config["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config["num_hidden_layers"])
    if rope.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", rope_factors(config, dim))
    for name, array in weights.items():
        if arch in ("llama", "internlm2") and ".q_proj." in name:
            array = permute(array, heads)
        if arch in ("llama", "internlm2") and ".k_proj." in name:
            array = permute(array, kv_heads)
        short = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert short is not None, name
        data, kind = quantise(name, array) if array.ndim == 2 else (array, Type.F32)
        writer.add_tensor(short, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def split_wqkv(weights: dict[str, np.ndarray], config: dict[str, Any]) -> dict[str, np.ndarray]:
    """InternLM2's packed rows (per key-value head: its queries, k, v) as three matrices."""
    groups, dim = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    found = {}
    for name, array in weights.items():
        if "wqkv" not in name:
            found[name] = array
            continue
        packed = array.reshape(groups, -1, dim, array.shape[-1])
        layer = name.split(".attention.")[0]
        for part, rows in (("q", packed[:, :-2]), ("k", packed[:, -2]), ("v", packed[:, -1])):
            found[f"{layer}.self_attn.{part}_proj.weight"] = np.ascontiguousarray(rows.reshape(-1, array.shape[-1]))
    return found


def open_graph(directory: Path) -> onnxruntime.InferenceSession:
    """graph.onnx as it is."""
    return onnxruntime.InferenceSession(str(directory / "graph.onnx"), providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, ids: np.ndarray) -> np.ndarray:
    """Logits [seq, vocab]."""
    feed = {"input_ids": ids[None], "position_ids": np.arange(len(ids), dtype=np.int64)[None]}
    for past in session.get_inputs()[2:]:
        feed[past.name] = np.zeros((1, past.shape[1], 0, past.shape[3]), np.float32)
    logits: np.ndarray = session.run(["logits"], feed)[0][0]
    return logits


FAMILIES = [("llama3", "llama"), ("smollm2", "llama"), ("internlm3", "llama"), ("internlm2", "internlm2")]
FAMILIES += [("qwen2", "qwen2"), ("qwen3", "qwen3")]


@pytest.mark.parametrize(("family", "arch"), FAMILIES)
def test_logits_equal_the_golden(family: str, arch: str, tmp_path: Path) -> None:
    folder = DATA / "goldens" / family
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    if arch == "internlm2":
        weights = split_wqkv(weights, config)
    write_gguf(tmp_path / "m.gguf", arch, config, weights)
    imported = import_gguf(tmp_path / "m.gguf")
    package = write_directory(imported, tmp_path / "package")
    stored = load_file(package / "model.safetensors")
    same = [n for n, a in weights.items() if n in stored and np.array_equal(stored[n], a)]
    assert len(same) == len(weights) or arch == "internlm2"  # all rows are back where they were
    answer = load_file(folder / "golden.safetensors")
    assert np.abs(run(open_graph(package), answer["input_ids"][0]) - answer["logits"][0]).max() <= BOUND
    onnx.checker.check_model(str(package / "graph.onnx"), full_check=True)


TYPES = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q4_K, Type.Q5_K, Type.Q6_K]
TYPES += [Type.F16, Type.BF16, Type.F32]


def random_blocks(shape: tuple[int, ...], kind: Type, rng: np.random.Generator) -> np.ndarray:
    """Any codes and scales there can be; the f16 fields small enough for values around 0.1."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    halves = {Type.Q6_K: [208]}.get(kind, [0] if kind in (Type.Q4_0, Type.Q5_0, Type.Q8_0) else [0, 2])
    steps = {Type.Q4_K: 2e-4, Type.Q5_K: 1e-4, Type.Q6_K: 2e-5, Type.Q8_0: 8e-4}.get(kind, 8e-3)
    for at in halves:
        raw[..., at : at + 2] = (steps * rng.standard_normal((*raw.shape[:2], 1))).astype("<f2").view(np.uint8)
    return raw.reshape(shape[0], -1)


def test_every_type_runs_in_onnx_runtime_as_it_is(tmp_path: Path) -> None:
    """Each type for some matrix of every role; the answer is PyTorch's on what the official package dequantises."""
    config = {
        "vocab_size": 128, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    }  # fmt: skip
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    weights = {n: t.numpy() for n, t in model.state_dict().items()}
    rng, used = np.random.default_rng(2), []

    def quantise(name: str, array: np.ndarray) -> tuple[np.ndarray, Type]:
        kind = TYPES[len(used) % len(TYPES)]
        used.append(kind)
        if kind in (Type.F32, Type.F16, Type.BF16):
            data = gguf.quantize(array, kind)
        else:
            data = random_blocks(array.shape, kind, rng)
        rows = gguf.dequantize(data, kind)
        heads = 4 if ".q_proj." in name else 2 if ".k_proj." in name else 0
        if heads:
            rows = rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
        weights[name][...] = rows  # the model's own memory
        return data, kind

    write_gguf(tmp_path / "m.gguf", "llama", config, dict(weights), quantise)
    assert set(used) == set(TYPES)
    package = write_directory(import_gguf(tmp_path / "m.gguf"), tmp_path / "package")
    ids = np.random.default_rng(3).integers(0, 128, 20)
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    assert np.abs(expected).max() > 0.5
    assert np.abs(run(open_graph(package), ids) - expected).max() <= BOUND
    onnx.checker.check_model(str(package / "graph.onnx"), full_check=True)


def test_transformers_opens_the_directory(tmp_path: Path) -> None:
    """config, tokenizer and, where nothing is quantised, the weights."""
    folder = DATA / "goldens" / "llama3"
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    write_gguf(tmp_path / "m.gguf", "llama", config, weights)
    package = write_directory(import_gguf(tmp_path / "m.gguf"), tmp_path / "package")
    answer = load_file(folder / "golden.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(package, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.from_numpy(answer["input_ids"])).logits.numpy()
    assert np.abs(logits - answer["logits"]).max() <= BOUND
    assert transformers.AutoTokenizer.from_pretrained(package).eos_token_id == 2


# ── the real file ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package made of SmolLM2-135M-Instruct.Q4_1.gguf."""
    source = find("smollm2")
    return write_directory(import_gguf(source), tmp_path_factory.mktemp("gguf") / "smollm2")


@pytest.mark.smollm2
def test_every_tensor_is_found() -> None:
    assert len(read_gguf(find("smollm2")).tensors) == 272


@pytest.mark.smollm2
def test_ids_equal_llama_cpp(smollm2: Path) -> None:
    lines = json.loads((DATA / "tokenizer" / "lines.json").read_text())
    captured = np.load(DATA / "tokenizer" / "smollm2.npz")
    tokenizer = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    for name in ("plain", "special"):
        tokenizer.encode_special_tokens = name == "plain"
        expected = np.split(captured[name], np.cumsum(captured[f"{name}_counts"])[:-1])
        found = [tokenizer.encode(line, add_special_tokens=False).ids for line in lines]
        assert len(expected) >= 1000
        assert [i for i, e in enumerate(expected) if found[i] != e.tolist()] == [], name
    tokenizer.encode_special_tokens = False
    assert [t for t in lines if tokenizer.decode(tokenizer.encode(t).ids, skip_special_tokens=False) != t] == []


@pytest.mark.smollm2
def test_ids_equal_transformers(smollm2: Path) -> None:
    """Its GGUF reader has no row for `smollm` and cuts around digits as GPT-2 does, so only on lines without digits."""
    source = find("smollm2")
    lines = json.loads((DATA / "tokenizer" / "lines.json").read_text())
    plain = [t for t in lines if not any(c.isnumeric() for c in t)]
    assert len(plain) > 500
    theirs = transformers.AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    opened = transformers.AutoTokenizer.from_pretrained(smollm2)
    ours = Tokenizer.from_file(str(smollm2 / "tokenizer.json"))
    ids = {t: ours.encode(t, add_special_tokens=False).ids for t in lines}
    for tokenizer, texts in ((theirs, plain), (opened, lines)):
        found = tokenizer(texts, add_special_tokens=False).input_ids
        assert [t for t, row in zip(texts, found, strict=True) if row != ids[t]] == []
    message = [{"role": "user", "content": "hi"}]
    assert opened.apply_chat_template(message, tokenize=False) == theirs.apply_chat_template(message, tokenize=False)


@pytest.mark.smollm2
def test_logits_are_near_those_of_llama_cpp(smollm2: Path) -> None:
    """llama.cpp rounds activations to 8 bits, so only near: over all of the capture 1.2 at most, on logits up to 38."""
    captured = json.loads((DATA / "smollm2" / "llama_cpp_i8.json").read_text())
    session = open_graph(smollm2)
    for case in captured["greedy"][:2]:
        logits = run(session, np.array(case["ids"] + case["tokens"][:12]))[len(case["ids"]) - 1 :]
        for row, top in zip(logits, case["top"][: len(logits)], strict=True):
            ids, values = zip(*top, strict=True)
            assert np.abs(row[list(map(int, ids))] - values).max() < 1.0
            assert row.max() - row[int(ids[0])] < 0.5  # the choice is theirs, or as good as
