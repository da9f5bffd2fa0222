"""What a user sees who gives Datong something wrong: one sentence, a hint, exit code 2, and nothing changed on disk.

Each case is a function that spoils a copy of a good checkpoint, package or GGUF file and returns the arguments.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest

Args = list[object]
Spoil = Callable[[Path], Args]


@dataclass(frozen=True)
class Case:
    """`words` are in the error sentence, `hint` in the hint (None: there is no hint)."""

    spoil: Spoil
    words: tuple[str, ...]
    hint: str | None = None


# ── a safetensors checkpoint ─────────────────────────────────────────────────────────────────────────────────────────


def weights(change: Callable[[dict[str, Any], bytes], bytes | None]) -> Spoil:
    """Rewrite model.safetensors; `change` may edit the header and return other data."""

    def spoil(root: Path) -> Args:
        path = root / "model.safetensors"
        raw = path.read_bytes()
        end = 8 + struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8:end])
        data = change(header, raw[end:])
        head = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + (raw[end:] if data is None else data))
        return ["import", root]

    return spoil


def move(header: dict[str, Any], index: int, by: int) -> None:
    names = sorted((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][0])
    header[names[index]]["data_offsets"] = [at + by for at in header[names[index]]["data_offsets"]]


def drop_last(header: dict[str, Any], data: bytes) -> bytes:
    last = max((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"][0])
    return data[: header.pop(last)["data_offsets"][0]]


def raw_weights(data: bytes) -> Spoil:
    def spoil(root: Path) -> Args:
        (root / "model.safetensors").write_bytes(data)
        return ["import", root]

    return spoil


def config(*, remove: str = "", **changes: object) -> Spoil:
    def spoil(root: Path) -> Args:
        path = root / "config.json"
        values = {**json.loads(path.read_text()), **changes}
        values.pop(remove, None)
        path.write_text(json.dumps(values))
        return ["import", root]

    return spoil


def index(file: str) -> Spoil:
    def spoil(root: Path) -> Args:
        (root / "model.safetensors").rename(root / "a.safetensors")
        (root / "outside.safetensors").symlink_to("/etc/passwd")
        (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": file}}))
        return ["import", root]

    return spoil


def replaced(name: str, text: str | None, *args: str) -> Spoil:
    """A file with other content, or without it (None); then `args`, with the directory after the verb."""

    def spoil(root: Path) -> Args:
        (root / name).unlink()
        if text is not None:
            (root / name).write_text(text)
        return [args[0], root, *args[1:]] if args else ["import", root]

    return spoil


def linked(name: str, verb: str = "import") -> Spoil:
    def spoil(root: Path) -> Args:
        (root / name).rename(root.parent / "elsewhere")
        (root / name).symlink_to(root.parent / "elsewhere")
        return [verb, root]

    return spoil


def template(text: str | None) -> Spoil:
    def spoil(root: Path) -> Args:
        settings = json.loads((root / "tokenizer_config.json").read_text())
        (root / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": text}))
        return ["run", root, "hello"]

    return spoil


def plain(*args: str) -> Spoil:
    """Nothing spoiled: the arguments are wrong."""
    return lambda root: [args[0], root, *args[1:]]


CHECKPOINT: dict[str, Case] = {
    "truncated": Case(weights(lambda h, d: d[:-100]), ("model.safetensors", "ends at byte", "has only"), "cut off"),
    "oversized": Case(weights(lambda h, d: d + b"123456789"), ("9 bytes after the last tensor",), "damaged"),
    "overlap": Case(weights(lambda h, d: move(h, 1, -16)), ("`model.embed_tokens.weight`", "overlaps"), "damaged"),
    "offset outside": Case(weights(lambda h, d: move(h, -1, 10**9)), ("leaves a hole",), "damaged"),
    "long header": Case(raw_weights(struct.pack("<Q", 2**60) + b"{}"), ("header", "1152921504606846976"), "damaged"),
    "no safetensors": Case(raw_weights(b"PK\3\4"), ("at least 8 bytes",), "damaged"),
    "tensor missing": Case(weights(drop_last), ("`model.norm.weight` [64] is not in the",), "download"),
    "weights missing": Case(replaced("model.safetensors", None), ("neither `model.safetensors` nor",), "config.json"),
    "index, absolute": Case(index("/etc/passwd"), ("should stay inside", "`/etc/passwd`"), "checkpoint"),
    "index, dots": Case(index("../tiny/a.safetensors"), ("stay inside", "`../tiny/a.safetensors`"), "checkpoint"),
    "index, link": Case(index("outside.safetensors"), ("is a link that leads out",), "cp -rL"),
    "index, no shard": Case(index("b.safetensors"), ("names `b.safetensors`, which is not there",), "download"),
    "tokenizer link": Case(linked("tokenizer.json"), ("`tokenizer.json` is a link that leads out",), "cp -rL"),
    "config link": Case(linked("config.json"), ("`config.json` is a link that leads out",), "cp -rL"),
    "model_type unknown": Case(config(model_type="gpt99"), ("model_type `gpt99` is not known",), "llama"),
    "model_type missing": Case(config(remove="model_type"), ("`model_type`", "missing"), "known: "),
    "config key missing": Case(config(remove="hidden_size"), ("config key `hidden_size` is missing",), "config.json"),
    "config key unknown": Case(config(foo=2), ("config key `foo` is not known for model_type `llama`",), "ignore it"),
    "config broken": Case(replaced("config.json", '{"a":'), ("`config.json` should be JSON",), None),
    "config missing": Case(replaced("config.json", None), ("`config.json` is not in `tiny`",), "directory"),
    "config missing, run": Case(replaced("config.json", None, "run", "hi"), ("`config.json` is not in",), "directory"),
    "tokenizer field missing": Case(replaced("tokenizer.json", '{"model": {}}'), ("`tokenizer.json`",), "original"),
    "tokenizer missing": Case(replaced("tokenizer.json", None, "run", "hi"), ("has no tokenizer.json",), "import it"),
    "tokenizer settings": Case(replaced("tokenizer_config.json", "[]"), ("should be a JSON object",), None),
    "template loops": Case(
        template("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"),
        ("it asked for",),
        "loops",
    ),
    "template range": Case(template("{{ range(1000000000) }}"), ("asked for too much",), "loops"),
    "template attributes": Case(template("{{ ''.__class__.__mro__ }}"), ("reached for", "__class__"), "do not use"),
    "template syntax": Case(template("{% for %}"), ("line 1 is no Jinja",), None),
    "template missing": Case(
        lambda root: ["chat", *template(None)(root)[1:2]], ("has no chat template",), "datong run"
    ),
    "read into a file": Case(lambda root: ["import", root, root / "config.json"], ("it is a file",), None),
    "read into others": Case(
        lambda root: ["import", root, root.parent / "others"], ("holds other files and no package",), "does not exist"
    ),
}  # fmt: skip


# ── a package ────────────────────────────────────────────────────────────────────────────────────────────────────────


def manifest(change: Callable[[dict[str, Any]], object], verb: str = "inspect") -> Spoil:
    def spoil(root: Path) -> Args:
        path = root / "datong.json"
        facts = json.loads(path.read_text())
        change(facts)
        path.write_text(json.dumps(facts))
        return [verb, root]

    return spoil


def external(key: str, value: str) -> Spoil:
    """graph.onnx names other external data, and datong.json agrees with it."""

    def spoil(root: Path) -> Args:
        model = onnx.load(root / "graph.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == key:
                    entry.value = value
        data = model.SerializeToString()
        (root / "graph.onnx").write_bytes(data)

        def agree(facts: dict[str, Any]) -> None:
            entry = next(f for f in facts["files"] if f["path"] == "graph.onnx")
            entry.update(size=len(data), sha256=hashlib.sha256(data).hexdigest())

        return manifest(agree, "compile")(root)

    return spoil


def flipped(name: str, *args: str) -> Spoil:
    def spoil(root: Path) -> Args:
        data = bytearray((root / name).read_bytes())
        data[len(data) // 2] ^= 1
        (root / name).write_bytes(data)
        return [args[0], root, *args[1:]]

    return spoil


def cut(name: str, verb: str) -> Spoil:
    def spoil(root: Path) -> Args:
        os.truncate(root / name, (root / name).stat().st_size - 5)
        return [verb, root]

    return spoil


PACKAGE: dict[str, Case] = {
    "newer": Case(manifest(lambda m: m.update(format_version=99)), ("format 1", "format 99"), "upgrade"),
    "manifest broken": Case(replaced("datong.json", "{", "inspect"), ("manifest should be a JSON object",), None),
    "manifest key": Case(manifest(lambda m: m.update(more=1)), ("does not follow the format", "`more`"), None),
    "path, absolute": Case(manifest(lambda m: m["files"][0].update(path="/etc/x")), ("'/etc/x'",), "absolute"),
    "path, dots": Case(manifest(lambda m: m["files"][0].update(path="../x")), ("'../x' is not one",), "`..`"),
    "link": Case(linked("model.safetensors", "inspect"), ("is a link that leaves the package",), "copy of the file"),
    "weights missing": Case(replaced("model.safetensors", None, "bench"), ("it is missing",), "import"),
    "weights cut": Case(cut("model.safetensors", "verify"), ("should have", "bytes"), "was changed"),
    "graph, absolute": Case(external("location", "/etc/passwd"), ("graph.onnx", "'/etc/passwd'"), "absolute"),
    "graph, dots": Case(external("location", "../tiny/model.safetensors"), ("'../tiny/model.safetensors'",), "`..`"),
    "graph, other file": Case(external("location", "config.json"), ("`config.json`, which is no weight file",), None),
    "graph, offset": Case(external("offset", "999999999"), ("should be bytes 999999999",), "replaced or edited"),
    "graph, hash": Case(flipped("graph.onnx", "compile"), ("[graph.onnx] the content should have SHA-256",), "import"),
    "tokenizer, hash": Case(flipped("tokenizer.json", "run", "hi"), ("[tokenizer.json]", "SHA-256"), "import"),
    "prompt too long": Case(plain("run", "x" * 1000), ("tokens and an answer", "context of 256"), "shorten"),
    "prompt too long here": Case(plain("run", "x" * 50, "--context", "16"), ("context of 16",), "allows 256"),
    "prompt empty": Case(plain("run", " "), ("the prompt should hold a text, it is empty",), "quote it"),
    "stdin is no text": Case(plain("run", "-"), ("stdin should be UTF-8",), "iconv"),
    "device": Case(plain("run", "hi", "--device", "npu7"), ("`npu7` should be a device", "`cpu`"), "entry point"),
    "isa": Case(plain("run", "hi", "--isa", "mmx"), ("option isa is ref, avx2, avx512", "`mmx` came"), None),
    "cache type": Case(plain("run", "hi", "--cache-dtype", "f8"), ("option cache_dtype is f32, f16 or bf16",), None),
    "temperature": Case(plain("run", "hi", "--temperature", "-1"), ("temperature should be a number",), None),
    "top-p": Case(plain("run", "hi", "--top-p", "2"), ("top_p should be a number", "at most 1"), None),
    "top-p, chat": Case(plain("chat", "--top-p", "2"), ("top_p should be a number", "at most 1"), None),
    "threads": Case(plain("run", "hi", "--threads", "0"), ("threads should be a whole number from 1",), None),
    "many threads": Case(plain("run", "hi", "--threads", "99999"), ("threads is a number from 1 to 1024",), None),
    "context": Case(plain("run", "hi", "--context", "999"), ("context should be at most 256",), None),
    "max-tokens": Case(plain("run", "hi", "--max-tokens", "0"), ("max_tokens should be a whole number from 1",), None),
    "stop": Case(plain("run", "hi", "--stop", ""), ("stop string should have 1 to",), None),
    "logprobs": Case(plain("run", "hi", "--logprobs", "2"), ("--json was not given",), "add --json"),
    "raw and system": Case(plain("run", "hi", "--raw", "--system", "x"), ("--raw leaves it out",), "drop one"),
    "bench": Case(plain("bench", "--prefill", "999"), ("should fit a context of 256",), "--context"),
    "no such place": Case(lambda root: ["run", root / "gone", "hi"], ("neither a path that exists nor a",), "smollm2"),
    "no such checkpoint": Case(lambda root: ["import", root / "gone"], ("it does not exist",), None),
    "not a package": Case(lambda root: ["verify", root.parent / "others"], ("has no datong.json",), "datong import"),
    "a text file": Case(lambda root: ["import", root / "config.json"], ("it is neither",), "config.json"),
    "foreign isa": Case(lambda root: ["conformance", "--isa", "mmx"], ("`mmx` came",), None),
}  # fmt: skip


# ── a GGUF file ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A Llama of one layer with a vocabulary of 8 tokens, as the official writer writes it."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["<s>", "</s>", "a", "b", "c", "d", "e", "ab"])
    writer.add_token_types([3, 3, 1, 1, 1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    block = {"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32), "attn_output": (32, 32), "ffn_gate": (64, 32),
             "ffn_up": (64, 32), "ffn_down": (32, 64), "attn_norm": (32,), "ffn_norm": (32,)}  # fmt: skip
    shapes = {"token_embd": (8, 32), "output_norm": (32,), **{f"blk.0.{name}": shape for name, shape in block.items()}}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def at(offset: int, form: str, value: int) -> Callable[[bytes], bytes]:
    new = struct.pack(form, value)
    return lambda raw: raw[:offset] + new + raw[offset + len(new) :]


def renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(raw: bytes) -> bytes:
        assert old in raw and len(old) == len(new)
        return raw.replace(old, new)

    return change


GGUF: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...], str | None]] = {
    "empty": (lambda raw: b"", ("the file is empty",), None),
    "magic": (lambda raw: b"GGML" + raw[4:], ("byte 0: a GGUF file begins with `GGUF`",), "right file"),
    "version": (at(4, "<I", 9), ("GGUF version should be 2 or 3, it is 9",), "convert"),
    "tensor count": (at(8, "<Q", 2**60), ("tensor count 1152921504606846976 cannot be",), "damaged"),
    "key count": (at(16, "<Q", 2**60), ("key count 1152921504606846976 cannot be",), "damaged"),
    "string length": (at(24, "<Q", 2**61), ("a key should have at most", "2305843009213693952"), None),
    "truncated": (lambda raw: raw[:-500], ("lies at bytes", "the file ends at"), "not downloaded completely"),
    "no tokens": (renamed(b"ggml.tokens", b"ggml.tokenz"), ("`tokenizer.ggml.tokens`", "missing"), "convert"),
    "no merges": (renamed(b"ggml.merges", b"ggml.mergez"), ("`tokenizer.ggml.merges`", "missing"), "convert"),
    "architecture": (renamed(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0xlama"), ("`xlama`",), "llama"),
}


# ── the tests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def contents(root: Path) -> dict[str, bytes]:
    """Every file below, but the locks of the cache: they hold nothing."""
    files = (p for p in root.rglob("*") if p.is_file() and p.suffix != ".lock")
    return {str(p.relative_to(root)): p.read_bytes() for p in files}


def check(cli: Any, tmp_path: Path, args: Args, words: tuple[str, ...], hint: str | None) -> None:
    (tmp_path / "others").mkdir(exist_ok=True)
    (tmp_path / "others" / "letter.txt").write_text("keep me")
    before = contents(tmp_path)
    ended = cli(*args, stdin=b"\xff\xfe\0abc")
    lines = ended.err.splitlines()
    assert ended.code == 2, ended
    assert ended.out == ""
    assert lines[0].startswith("error: [") and all(word in lines[0] for word in words), ended.err
    assert [line for line in lines[1:] if not line.startswith("hint: ")] == [], "one sentence and a hint"
    assert len(lines) == 1 if hint is None else len(lines) == 2 and hint in lines[1], ended.err
    after = contents(tmp_path)
    kept = {name for name in after if name.startswith("cache/")}  # a whole entry may stay there, a part may not
    assert {name: data for name, data in after.items() if name not in kept} == before
    assert [name for name in kept if ".partial" in name or ".old" in name or ".plan-" in name] == []


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", CHECKPOINT)
def test_checkpoint(name: str, cli: Any, checkpoint: Path, tmp_path: Path) -> None:
    case = CHECKPOINT[name]
    check(cli, tmp_path, case.spoil(checkpoint), case.words, case.hint)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", PACKAGE)
def test_package(name: str, cli: Any, package: Path, tmp_path: Path) -> None:
    case = PACKAGE[name]
    check(cli, tmp_path, case.spoil(package), case.words, case.hint)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", GGUF)
def test_gguf(name: str, cli: Any, gguf_bytes: bytes, tmp_path: Path) -> None:
    change, words, hint = GGUF[name]
    (tmp_path / "bad.gguf").write_bytes(change(gguf_bytes))
    check(cli, tmp_path, ["import", tmp_path / "bad.gguf"], ("[bad.gguf]", *words), hint)
    assert not (tmp_path / "bad-datong").exists()


def test_the_unspoiled_ones_are_fine(
    cli: Any, checkpoint: Path, gguf_bytes: bytes, cache: Path, tmp_path: Path
) -> None:
    """Else every case above could pass for the wrong reason."""
    (tmp_path / "good.gguf").write_bytes(gguf_bytes)
    assert cli("import", tmp_path / "good.gguf").code == 0
    assert cli("import", checkpoint).code == 0
    assert cli("run", checkpoint, "hello", "--max-tokens", "3").code == 0


@pytest.mark.parametrize("variable", ["DATONG_THREADS", "DATONG_ISA", "DATONG_VERIFY"])
def test_environment(variable: str, package: Path, tmp_path: Path) -> None:
    """In a process of its own: backends are made once per process."""
    env = {**os.environ, "DATONG_CACHE": str(tmp_path / "cache"), variable: "nonsense"}
    done = datong("run", package, "hi", env=env)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: [") and "`nonsense`" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["run"], "Missing argument 'MODEL'"),
        (
            ["run", "smollm2", "hi", "--temprature", "1"],
            "No such option: --temprature (Possible options: --temperature)",
        ),
        (["run", "smollm2", "hi", "--threads", "many"], "Invalid value for '--threads'"),
        (["bench", "smollm2", "--prefill", "0"], "Invalid value for '--prefill'"),
    ],
)
def test_usage(args: list[str], text: str, cli: Any) -> None:
    ended = cli(*args)
    assert ended.code == 2 and ended.out == ""
    assert text in ended.err and "--help' for help" in ended.err and "\x1b" not in ended.err


def datong(*args: object, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-c", "from datong.cli import main; main()", *map(str, args)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, env=env, text=True, check=False, timeout=120, **streams)


def test_a_process_of_its_own_says_it_too(tmp_path: Path) -> None:
    done = datong("inspect", tmp_path / "gone", env={**os.environ, "NO_COLOR": "1"})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        f"error: [load] `{tmp_path / 'gone'}` is neither a path that exists nor a known name",
        "hint: known names: smollm2; or give a path",
    ]


@pytest.mark.parametrize("args", [["inspect"], ["inspect", "--json"], ["run", "hi", "--max-tokens", "3"]])
def test_stdout_on_a_full_disk(args: list[str], package: Path, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    env = {**os.environ, "DATONG_CACHE": str(tmp_path / "cache"), "NO_COLOR": "1"}
    with open("/dev/full", "w") as full:
        done = datong(args[0], package, *args[1:], env=env, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "error: [output] stdout could not be written: No space left on device\n"


@pytest.mark.parametrize("stream", [">&-", "2>&-", "| true"])
def test_nobody_listens(stream: str, package: Path, tmp_path: Path) -> None:
    """Closed streams and a reader that has enough end quietly."""
    env = {**os.environ, "DATONG_CACHE": str(tmp_path / "cache"), "P": str(package), "PYTHON": sys.executable}
    code = "from datong.cli import main; main()"
    line = f'"$PYTHON" -c "{code}" run "$P" hello --max-tokens 100 {stream}'
    done = subprocess.run(["sh", "-c", line], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 KiB; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if os.geteuid() != 0 or mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place: Path, leave: int) -> None:
    free = shutil.disk_usage(place).free
    (place / "filling").write_bytes(bytes(max(0, free - leave)))


def test_full_disk(cli: Any, checkpoint: Path, gguf_bytes: bytes, small_disk: Path, monkeypatch: Any) -> None:
    source = checkpoint.parent / "m.gguf"
    source.write_bytes(gguf_bytes)
    here = Path(shutil.copytree(checkpoint, small_disk / "tiny"))
    fill(small_disk, 8192)
    monkeypatch.setenv("DATONG_CACHE", str(small_disk / "cache"))
    for args, word in (
        (["import", here], "no space left"),
        (["import", source, small_disk / "a"], "bytes, its disk has"),
        (["import", checkpoint, small_disk / "b"], "bytes, its disk has"),
        (["run", source, "hi"], "bytes, its disk has"),
    ):
        before = contents(small_disk)
        ended = cli(*args)
        assert ended.code == 2 and word in ended.err and "hint: free some space" in ended.err
        assert "Traceback" not in ended.err
        assert contents(small_disk) == before


def test_a_disk_that_fills_while_writing(cli: Any, checkpoint: Path, small_disk: Path, monkeypatch: Any) -> None:
    """The free space was there when asked, and then it was not."""
    from datong.package import writer

    monkeypatch.setattr(writer, "_check_space", lambda *_: None)
    fill(small_disk, 200_000)
    before = contents(small_disk)
    ended = cli("import", checkpoint, small_disk / "b")
    assert ended.code == 2 and "no space left" in ended.err and "nothing half-written" in ended.err
    assert contents(small_disk) == before
    assert sorted(p.name for p in small_disk.iterdir()) == ["filling"]


def test_read_only(cli: Any, checkpoint: Path, package_template: Path, small_disk: Path, monkeypatch: Any) -> None:
    (small_disk / "one").mkdir()
    here = Path(shutil.copytree(checkpoint, small_disk / "tiny"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    monkeypatch.setenv("DATONG_CACHE", str(small_disk / "cache"))
    ended = cli("import", here)
    assert ended.code == 2 and "Read-only file system" in ended.err and "hint: name another destination" in ended.err
    ended = cli("run", here, "hi")
    assert ended.code == 2 and "which cannot be written" in ended.err and "hint: set DATONG_CACHE" in ended.err
    assert cli("run", package_template, "hi", "--max-tokens", "2").code == 0, "a package needs no cache"
