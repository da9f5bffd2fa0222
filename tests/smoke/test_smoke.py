"""The shortest tour of the API: a checkpoint becomes a package, a package answers. Runs in a few seconds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import datong

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}assistant:"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny Llama with random weights, and a tokenizer whose tokens are bytes."""
    path = tmp_path_factory.mktemp("smoke") / "tiny"
    shutil.copytree(GOLDENS / "llama3", path)
    alphabet = sorted(c for c in pre_tokenizers.ByteLevel.alphabet() if c.isascii() or c in "ĠĊ")  # space, newline
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (path / "golden.safetensors").unlink()
    return path


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory) -> datong.Model:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATONG_CACHE", str(tmp_path_factory.mktemp("cache")))
        datong.import_checkpoint(checkpoint)
        return datong.load(checkpoint, device="cpu")


def test_importing_writes_two_files(model, checkpoint):
    assert (checkpoint / "graph.onnx").exists() and (checkpoint / "datong.json").exists()


def test_devices():
    assert {"cpu", "reference"} <= {device.name for device in datong.devices()}


def test_logits(model):
    logits = model.logits(np.array([1, 2, 3]))
    assert logits.shape == (3, model.vocab_size) and logits.dtype == np.float32


def test_generate(model):
    answer = model.generate("Once upon a time", max_tokens=5)
    assert len(answer.tokens) <= 5 and answer.timings.decode_rate >= 0


def test_generate_for_several_prompts(model):
    prompts = ["a", "some longer text", "b"]
    together = model.generate(prompts, max_tokens=5)
    assert [r.tokens for r in together] == [model.generate(p, max_tokens=5).tokens for p in prompts]


def test_stream(model):
    with model.generate("Hello", max_tokens=5, stream=True) as stream:
        text = "".join(chunk.text for chunk in stream)
    assert text == stream.result.text


def test_a_seed_repeats(model):
    options = {"max_tokens": 8, "temperature": 1.0, "top_p": 0.9, "seed": 7}
    assert model.generate("Hello", **options).tokens == model.generate("Hello", **options).tokens


def test_chat(model):
    session = model.session(max_tokens=4)
    session.say("Hi")
    assert [m["role"] for m in session.messages] == ["user", "assistant"]


def test_what_runs_where(model):
    assert all(backend == "cpu" and placed.implementation for backend, placed in model.placement())


def test_compile_without_loading(checkpoint):
    assert [part.backend for part in datong.compile(checkpoint, "reference").parts] == ["reference"]


def test_errors_say_where_what_and_what_to_do(model):
    with pytest.raises(datong.errors.ContextOverflow, match=r"\[generate\] .*\nhint: "):
        model.logits([1] * (model.context + 1))
