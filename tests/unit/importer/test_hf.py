"""import_directory: reads little, writes nothing, and says in one sentence what a directory lacks."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from datong.errors import ConfigError, ContainmentError, ImportFailed
from datong.importer.hf import import_directory

GOLDENS = Path(__file__).parents[2] / "data" / "goldens"


def test_what_comes_out() -> None:
    before = sorted(p.name for p in (GOLDENS / "llama3_sharded").iterdir())
    imported = import_directory(GOLDENS / "llama3_sharded")
    assert (imported.family, imported.name, imported.source) == ("llama", "llama3_sharded", "directory:llama3_sharded")
    assert (imported.vocab_size, imported.context_length, imported.licence) == (128, 256, None)
    shards = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert imported.files == ("config.json", "model.safetensors.index.json", *shards)
    assert imported.config["rope_theta"] == 500000.0 and imported.ignored_keys["torch_dtype"]
    assert not imported.generated and not imported.tensors
    assert sorted(p.name for p in (GOLDENS / "llama3_sharded").iterdir()) == before


def test_source_names_the_repository_where_the_config_does(tmp_path: Path) -> None:
    for stated, source in (
        ("Qwen/Qwen3-0.6B", "hf:Qwen/Qwen3-0.6B"),
        ("/home/me/out", "directory:m"),
        (3, "directory:m"),
    ):
        shutil.copytree(GOLDENS / "llama3", tmp_path / "m", dirs_exist_ok=True)
        config = json.loads((tmp_path / "m" / "config.json").read_text()) | {"_name_or_path": stated}
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        assert import_directory(tmp_path / "m").source == source


def test_a_hub_cache_gives_name_and_commit_and_its_links_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = (
        tmp_path / "models--Qwen--Qwen3-0.6B" / "snapshots" / "abc123",
        tmp_path / "models--Qwen--Qwen3-0.6B" / "blobs",
    )
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(("config.json", "model.safetensors")):
        shutil.copy(GOLDENS / "qwen3" / file, blobs / f"{i}")
        (snapshot / file).symlink_to(f"../../blobs/{i}")
    imported = import_directory(snapshot)
    assert (imported.name, imported.source) == ("Qwen3-0.6B", "hf:Qwen/Qwen3-0.6B@abc123")
    (snapshot / "tokenizer.json").symlink_to("../../refs/main")
    with pytest.raises(ContainmentError, match="leads out of the directory"):
        import_directory(snapshot)


@pytest.mark.parametrize(
    ("raw", "text"), [(b"{", "should be JSON"), (b"[]", "should be a JSON object"), (b"\xff\xfe", "should be JSON")]
)
def test_config_that_is_no_object(tmp_path: Path, raw: bytes, text: str) -> None:
    (tmp_path / "config.json").write_bytes(raw)
    with pytest.raises(ImportFailed, match=f"`config.json` {text}"):
        import_directory(tmp_path)


def test_config_missing_too_large_or_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ImportFailed, match="should be a directory"):
        import_directory(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"`config\.json` is not in"):
        import_directory(tmp_path)
    (tmp_path / "config.json").write_bytes(b" " * 4_000_001)
    with pytest.raises(ImportFailed, match="may have 4000000 bytes, it has 4000001"):
        import_directory(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/proc/self/environ")
    with pytest.raises(ContainmentError, match="leads out of the directory"):
        import_directory(tmp_path)


def sparse_llama(directory: Path, layers: int, hidden: int, inner: int, vocab: int) -> int:
    """A llama checkpoint in BF16 whose weights are a hole in the file; returns its size in bytes."""
    config = {
        "model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128, "num_key_value_heads": 8, "vocab_size": vocab, "hidden_act": "silu",
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config))
    layer = {
        "input_layernorm": [hidden], "post_attention_layernorm": [hidden], "mlp.gate_proj": [inner, hidden],
        "mlp.up_proj": [inner, hidden], "mlp.down_proj": [hidden, inner], "self_attn.q_proj": [hidden, hidden],
        "self_attn.k_proj": [1024, hidden], "self_attn.v_proj": [1024, hidden], "self_attn.o_proj": [hidden, hidden],
    }  # fmt: skip
    shapes = {f"model.layers.{i}.{n}.weight": s for i in range(layers) for n, s in layer.items()}
    shapes |= {
        "model.embed_tokens.weight": [vocab, hidden],
        "lm_head.weight": [vocab, hidden],
        "model.norm.weight": [hidden],
    }
    header: dict[str, Any] = {}
    position = 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + size]}
        position += size
    raw = json.dumps(header).encode()
    path = directory / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(raw)) + raw)
    os.truncate(path, 8 + len(raw) + position)
    return path.stat().st_size


def test_a_sparse_checkpoint_of_over_100_gb_reads_no_weights(tmp_path: Path) -> None:
    size = sparse_llama(tmp_path, layers=80, hidden=8192, inner=28672, vocab=128256)
    assert size > 100e9
    before = int(Path("/proc/self/io").read_text().split()[1])
    imported = import_directory(tmp_path)
    read = int(Path("/proc/self/io").read_text().split()[1]) - before
    assert read < 2_000_000, "only headers, config and what lies beside them may be read"
    assert len(imported.caches) == 80 and imported.weights.weights["lm_head.weight"].pieces["codes"].length > 2e9
