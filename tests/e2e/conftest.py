"""What the tests of the command line share: a way to call it, and a package small enough to copy for each test."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO, TextIOWrapper
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

DATA = Path(__file__).resolve().parents[1] / "data"
SPECIALS = ("<pad>", "<s>", "</s>", "<|turn|>")
TEMPLATE = (
    "{% for m in messages %}<|turn|>{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Cli = Callable[..., Ended]


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """A shell starts background jobs with Ctrl-C ignored, and children inherit that: those of the tests must not."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """`cli("inspect", path)`: the entry point of the `datong` script, in this process."""

    def call(*args: object, stdin: bytes = b"") -> Ended:
        from datong.cli import main

        monkeypatch.setattr(sys, "argv", ["datong", *map(str, args)])
        monkeypatch.setattr(sys, "stdin", TextIOWrapper(BytesIO(stdin), "utf-8"))
        capfd.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        assert isinstance(code, int)
        return Ended(code, *capfd.readouterr())

    return call


@pytest.fixture(autouse=True)
def _plain_output(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No colour and a known width for whoever calls the command line."""
    if "cli" in request.fixturenames:
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "100")


def tokenizer_json() -> str:
    """A byte-level tokenizer of 128 tokens: printable ASCII, and bytes that make half characters of 3."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner = tokenizers.Tokenizer(models.BPE())
    ascii_ = [c for c in sorted(alphabet) if 33 <= ord(c) < 127]
    others = ["Ġ", "Ċ", *(c for c in sorted(alphabet, reverse=True) if ord(c) >= 127 and c not in "ĠĊ")]
    vocab = {c: i for i, c in enumerate((*SPECIALS, *ascii_, *others)) if i < 128}
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(SPECIALS))
    return str(inner.to_str())


@pytest.fixture(scope="session")
def checkpoint_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 91,000 weights with a tokenizer and a chat template, as it would come from the hub."""
    target = tmp_path_factory.mktemp("checkpoint") / "tiny"
    shutil.copytree(DATA / "goldens" / "llama3", target, ignore=shutil.ignore_patterns("golden.*"))
    (target / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE}
    (target / "tokenizer_config.json").write_text(json.dumps(settings))
    for path in target.iterdir():
        path.chmod(0o644)
    return target


@pytest.fixture
def checkpoint(checkpoint_template: Path, tmp_path: Path) -> Path:
    """A copy of it, for this test alone."""
    return Path(shutil.copytree(checkpoint_template, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def package_template(checkpoint_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, imported."""
    from datong.package.create import import_checkpoint

    return import_checkpoint(checkpoint_template, tmp_path_factory.mktemp("package") / "tiny").root


@pytest.fixture
def package(package_template: Path, tmp_path: Path) -> Path:
    """A copy of it, for this test alone."""
    return Path(shutil.copytree(package_template, tmp_path / "tiny"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DATONG_CACHE, empty."""
    monkeypatch.setenv("DATONG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
