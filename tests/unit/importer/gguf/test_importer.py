"""A whole tiny GGUF file -> Imported: layout, graph, files; and what is refused on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from safetensors import safe_open

from datong.errors import CheckpointError, TokenizerError
from datong.importer import layout
from datong.importer.gguf import import_gguf
from datong.importer.imported import Imported

Save = Callable[[bytes], Path]


def weights_file(imported: Imported, path: Path) -> Path:
    """The model.safetensors that the package writer makes."""
    data = b"".join(chunk for t in imported.tensors for chunk in t.read())
    path.write_bytes(layout.header(imported.tensors) + data)
    return path


@pytest.mark.parametrize("arch", ["llama", "internlm2", "qwen2", "qwen3"])
def test_tensors_arrive_where_the_map_says(arch: str, raw: SimpleNamespace, save: Save, tmp_path: Path) -> None:
    keys, arrays = raw.model(arch)
    imported = import_gguf(save(raw.with_arrays(keys, arrays)))
    path = weights_file(imported, tmp_path / "model.safetensors")
    stored = safetensors.numpy.load_file(path)  # the official reader accepts the layout
    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}
    blob = path.read_bytes()
    assert not list(imported.weights.left_over()) and len(stored) == len(arrays)
    for name, weight in imported.weights.weights.items():
        piece = weight.pieces["codes"]
        found = np.frombuffer(blob, "<f4", piece.length // 4, piece.offset).reshape(piece.shape)
        assert np.array_equal(found, stored[name]) and piece.offset % 4 == 0
    q = arrays["blk.1.attn_q.weight"].astype(np.float32)
    expected = q if arch.startswith("qwen") else q.reshape(2, 4, 2, 16).swapaxes(1, 2).reshape(16, 16)
    assert np.array_equal(stored["model.layers.1.self_attn.q_proj.weight"], expected)
    assert np.array_equal(stored["lm_head.weight"], arrays["output.weight"].astype(np.float32))


def test_facts_and_files(raw: SimpleNamespace, save: Save) -> None:
    keys, arrays = raw.model(
        tokenizer__ggml__eot_token_id=5,
        tokenizer__chat_template="{{ messages }}",
        tokenizer__chat_template__tool_use="{{ tools }}",
        general__sampling__temp=0.5,
    )
    imported = import_gguf(save(raw.with_arrays(keys, arrays)))
    assert (imported.name, imported.licence, imported.source) == ("tiny", "apache-2.0", "gguf:m.gguf")
    assert (imported.family, imported.vocab_size, imported.context_length) == ("llama", 265, 64)
    assert [(c.layer, c.kv_heads) for c in imported.caches] == [(0, 1), (1, 1)]
    files = {n: json.loads(b) for n, b in imported.generated.items() if n.endswith(".json")}
    assert files["config.json"] == imported.config
    assert files["generation_config.json"] == {
        "bos_token_id": 1,
        "do_sample": True,
        "eos_token_id": [2, 5],
        "temperature": 0.5,
    }
    config = files["tokenizer_config.json"]
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert config["chat_template"] == "{{ messages }}" and config["add_bos_token"] is True
    assert imported.generated["additional_chat_templates/tool_use.jinja"] == b"{{ tools }}"


def test_a_name_that_is_no_name_is_replaced(raw: SimpleNamespace, save: Save) -> None:
    imported = import_gguf(save(raw.with_arrays(*raw.model(general__name="a\x1b[2J", general__license=""))))
    assert (imported.name, imported.licence) == ("m", None)


def test_origin(raw: SimpleNamespace, save: Save) -> None:
    keys, arrays = raw.model()
    keys |= {"general.url": "https://example.org/b", "general.source.url": "https://example.org/a"}
    assert import_gguf(save(raw.with_arrays(keys, arrays))).source == "gguf:m.gguf of https://example.org/a"


def test_sizes_that_the_metadata_claims_are_not_believed(raw: SimpleNamespace, save: Save) -> None:
    keys, arrays = raw.model(llama__attention__key_length=2**31 - 2)
    with pytest.raises(CheckpointError, match=r"`blk.0.attn_q.weight` should have 4294967292 rows"):
        import_gguf(save(raw.with_arrays(keys, arrays)))


def test_same_file_same_bytes(raw: SimpleNamespace, save: Save, tmp_path: Path) -> None:
    path = save(raw.with_arrays(*raw.model()))
    first, second = import_gguf(path), import_gguf(path)
    assert first.generated == second.generated
    paths = [weights_file(imported, tmp_path / name) for imported, name in ((first, "a"), (second, "b"))]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def change(arrays: dict[str, np.ndarray], name: str, array: np.ndarray | None) -> dict[str, np.ndarray]:
    rest = {n: a for n, a in arrays.items() if n != name}
    return rest if array is None else {**rest, name: array}


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        (
            "blk.1.ffn_up.weight",
            None,
            r"tensor `model.layers.1.mlp.up_proj.weight` \[32, 16\] is not in the checkpoint",
        ),
        ("blk.1.ffn_up.weight", np.zeros((31, 16)), r"should have shape \[32, 16\], the checkpoint has \[31, 16\]"),
        (
            "blk.0.attn_q.weight",
            np.zeros((12, 16)),
            r"tensor `blk.0.attn_q.weight` should have 16 rows \(2 heads of 8\), it has 12",
        ),
        ("blk.2.attn_q.weight", np.zeros((16, 16)), "1 tensors are not used by model_type `llama`: `model.layers.2"),
        (
            "blk.0.ffn_gate_inp.weight",
            np.zeros((4, 16)),
            "tensor `blk.0.ffn_gate_inp.weight` is not known for model_type `llama`",
        ),
    ],
)
def test_wrong_tensors_are_named(name: str, array: Any, message: str, raw: SimpleNamespace, save: Save) -> None:
    keys, arrays = raw.model()
    with pytest.raises(CheckpointError, match=message):
        import_gguf(save(raw.with_arrays(keys, change(arrays, name, array))))


def test_types_that_are_not_carried(raw: SimpleNamespace, save: Save) -> None:
    keys, _ = raw.model()
    entries = [
        raw.tensor("token_embd.weight", [16, 265], 0, 0),
        raw.tensor("blk.0.ffn_up.weight", [256, 2], 17, 32 * 530),
    ]
    with pytest.raises(
        CheckpointError, match=r"tensor `blk.0.ffn_up.weight` is stored as IQ2_XS, which Datong does not carry"
    ):
        import_gguf(save(raw.file(keys, entries, bytes(32 * 530 + 148))))
    entries[1] = raw.tensor("output_norm.weight", [32], 8, 32 * 530)
    with pytest.raises(
        CheckpointError, match=r"tensor `output_norm.weight` \[32\] should be a matrix, to be stored as Q8_0"
    ):
        import_gguf(save(raw.file(keys, entries, bytes(32 * 530 + 34))))


def test_tokenizer_field_missing(raw: SimpleNamespace, save: Save) -> None:
    keys, arrays = raw.model(tokenizer__ggml__tokens=None)
    with pytest.raises(
        TokenizerError, match=r"\[m.gguf\] key `tokenizer.ggml.tokens` \(an array of strings\) is missing"
    ):
        import_gguf(save(raw.with_arrays(keys, arrays)))
