"""A package's life: imported in place, opened, sealed, verified, tampered with; and 100 GB imported in seconds."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy

from datong.errors import IntegrityError
from datong.package.create import import_checkpoint
from datong.package.describe import describe
from datong.package.reader import Package, open_package
from datong.package.seal import LogitsFn, seal
from datong.package.store import resolve
from datong.package.verify import verify

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
FAMILIES = ["smollm2", "llama3", "llama3_sharded", "qwen2", "qwen3", "internlm2", "internlm3"]
TOLERANCE = 2e-3  # max |difference| of a logit, from the README of the goldens


def checkpoint(name: str, tmp_path: Path) -> Path:
    target = tmp_path / name
    shutil.copytree(GOLDENS / name, target, ignore=shutil.ignore_patterns("golden.safetensors"))
    for path in (target, *target.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return target


def onnxruntime_logits(package: Package) -> LogitsFn:
    """ids [T] -> [T, vocab], by an engine that knows nothing of Datong, on the file as it lies there."""
    session = onnxruntime.InferenceSession(str(package.root / "graph.onnx"), providers=["CPUExecutionProvider"])

    def logits(ids: np.ndarray) -> np.ndarray:
        feeds = {"input_ids": ids[None, :], "position_ids": np.arange(len(ids))[None, :]}
        for c in package.manifest.caches:
            for kind, width in (("key", c.key_dim), ("value", c.value_dim)):
                feeds[f"past_key_values.{c.layer}.{kind}"] = np.zeros((1, c.kv_heads, 0, width), np.float32)
        return session.run(["logits"], feeds)[0][0]

    return logits


@pytest.mark.parametrize("name", FAMILIES)
def test_the_life_of_a_package(name: str, tmp_path: Path) -> None:
    source = checkpoint(name, tmp_path)
    before = {p.name for p in source.iterdir()}
    package = import_checkpoint(source)
    assert {p.name for p in source.iterdir()} - before == {"datong.json", "graph.onnx"}
    onnx.checker.check_model(str(source / "graph.onnx"), full_check=True)

    answer = safetensors.numpy.load_file(GOLDENS / name / "golden.safetensors")
    run = onnxruntime_logits(package)
    assert np.abs(run(answer["input_ids"][0]) - answer["logits"][0]).max() < TOLERANCE

    sealed = seal(package, run, "onnxruntime")
    assert sealed.manifest.sealed and len(sealed.manifest.goldens) == 2
    report = verify(sealed.root, run)
    assert report.ok and not [c for c in report.checks if c.status == "skipped" and c.name != "tokenizer"]
    info = describe(sealed)
    assert info["sealed"] and info["operator_set"]["onnx_opset"] == 27
    assert info["weight_bytes"] == sum(e.length for h in sealed.headers.values() for e in h.tensors.values())


def test_one_changed_weight_is_found_by_its_hash_and_by_the_golden_vectors(tmp_path: Path) -> None:
    source = checkpoint("smollm2", tmp_path)
    package = import_checkpoint(source)
    package = seal(package, onnxruntime_logits(package), "onnxruntime")
    place = package.headers["model.safetensors"].tensors["model.norm.weight"].offset
    with open(source / "model.safetensors", "r+b") as f:
        f.seek(place)
        f.write(np.float32(50).tobytes())
    report = verify(open_package(source), onnxruntime_logits(package))
    assert [c.name for c in report.checks if c.status == "failed"] == ["hash model.safetensors", "golden 0", "golden 1"]
    with pytest.raises(IntegrityError):
        report.raise_if_failed()


def test_transformers_reads_the_directory_as_if_nothing_were_there(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    package = import_checkpoint(checkpoint("llama3_sharded", tmp_path))
    model = transformers.AutoModelForCausalLM.from_pretrained(package.root).eval()
    answer = safetensors.numpy.load_file(GOLDENS / "llama3_sharded" / "golden.safetensors")
    with torch.no_grad():
        logits = model(torch.from_numpy(answer["input_ids"])).logits.float().numpy()
    assert np.abs(logits - answer["logits"]).max() < TOLERANCE


def sparse_checkpoint(directory: Path) -> int:
    """A llama of 100 GB in bf16 that takes a few kilobytes on disk: the data is one hole. Returns its bytes."""
    hidden, ffn, layers, heads, kv, vocab = 8192, 28672, 57, 64, 8, 128256
    shapes = {
        "model.embed_tokens.weight": (vocab, hidden),
        "lm_head.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(layers):
        p = f"model.layers.{i}."
        for name, shape in {
            "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv * 128, hidden),
            "self_attn.v_proj": (kv * 128, hidden), "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden), "mlp.down_proj": (hidden, ffn),
            "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        }.items():  # fmt: skip
            shapes[f"{p}{name}.weight"] = shape
    config = json.loads((GOLDENS / "smollm2" / "config.json").read_text())
    config.update(
        hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers, num_attention_heads=heads, head_dim=128,
        num_key_value_heads=kv, vocab_size=vocab, tie_word_embeddings=False, dtype="bfloat16",
    )  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    path = directory / "model.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    os.truncate(path, 8 + len(head) + end)
    return end


def bytes_read() -> int:
    """What this process has asked of read() so far, whether the disk was needed or not."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def test_a_checkpoint_of_100_gb_is_imported_in_place_and_not_read(tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    try:
        size = sparse_checkpoint(big)
    except OSError as e:
        pytest.skip(f"this file system has no sparse files of 100 GB: {e}")
    assert size > 99e9
    import_checkpoint(checkpoint("smollm2", tmp_path))  # loads the code, which is read too
    before = bytes_read()
    package = import_checkpoint(big)
    assert bytes_read() - before < 5e6
    assert package.manifest.weights.bytes == size
    assert (big / "model.safetensors").stat().st_blocks * 512 < 1e6, "still a hole"


@pytest.mark.smollm2
def test_a_gguf_becomes_a_whole_package_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATONG_CACHE", str(tmp_path))
    package = resolve("smollm2")
    assert package.weights_root == package.root and package.tokenizer_file is not None
    assert all(f.sha256 for f in package.manifest.files), "the bytes passed by"
    assert verify(package).ok
    assert package.chat_template() is not None
    before = bytes_read()
    again = resolve("smollm2")
    assert bytes_read() - before < 2e7, "not imported again, and no weight is read"
    assert again.fingerprint == package.fingerprint
