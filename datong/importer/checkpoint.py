"""The weights of a Hugging Face directory: one file or shards with an index -> WeightMap. Reads headers only.

    model.safetensors                                          everything; or
    model.safetensors.index.json  {"weight_map": {tensor: shard file}}  and the shards

Every shard that the index names is read whole, as transformers does: a tensor that lies in a shard and is not in the
index is still seen (and then used, ignored with a reason, or an error as left over).
"""

from __future__ import annotations

from pathlib import Path

from datong import dtypes
from datong.errors import CheckpointError
from datong.importer import files
from datong.importer.imported import Progress
from datong.importer.safetensors import Header, read_header
from datong.importer.show import show
from datong.importer.weights import StoredTensor, Weight, WeightMap
from datong.spec import formats

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PLAIN = {"F32": formats.PLAIN_F32, "F16": formats.PLAIN_F16, "BF16": formats.PLAIN_BF16}


def read_weights(directory: Path, progress: Progress | None = None) -> WeightMap:
    """Every tensor of the checkpoint in `directory`, by name, with file, offset and length.

    Raises:
        CheckpointError: no safetensors here, a shard is missing or damaged, or index and shards disagree.
        ContainmentError: a file name or link leads out of the directory.
    """
    single, index = files.contained(directory, SINGLE), files.contained(directory, INDEX)
    promised = _read_index(directory) if index.is_file() else {}
    if single.is_file() and promised and set(promised.values()) != {SINGLE}:
        raise CheckpointError("import", f"`{SINGLE}` or `{INDEX}` was wanted, both are here", "remove the stale one")
    if not promised and not single.is_file():
        raise CheckpointError("import", f"neither `{SINGLE}` nor `{INDEX}` is in `{directory.name}`", _hint(directory))
    shards = sorted(set(promised.values())) or [SINGLE]
    headers: dict[str, Header] = {}
    for done, shard in enumerate(shards):
        if progress:
            progress("reading headers", done, len(shards))
        path = files.contained(directory, shard)
        if not path.is_file():
            raise CheckpointError("import", f"`{INDEX}` names {show(shard)}, which is not there", "download that shard")
        headers[shard] = read_header(path)
    if progress:
        progress("reading headers", len(shards), len(shards))
    return _collect(headers, promised)


def weight_files(weights: WeightMap) -> list[str]:
    """Files that hold the weights, sorted."""
    return sorted({p.file for w in weights.weights.values() for p in w.pieces.values()})


def _read_index(directory: Path) -> dict[str, str]:
    """Tensor name -> shard file, not empty."""
    shards = files.read_json(directory, INDEX).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(v, str) for v in shards.values()):
        raise CheckpointError("import", f"`{INDEX}` should have a `weight_map` from tensor names to file names")
    return shards


def _collect(headers: dict[str, Header], promised: dict[str, str]) -> WeightMap:
    weights: dict[str, Weight] = {}
    unusable: dict[str, str] = {}
    others: dict[str, StoredTensor] = {}
    place: dict[str, str] = {}
    for shard, header in headers.items():
        for name, entry in header.tensors.items():
            if name in place:
                raise CheckpointError("import", f"tensor {show(name)} lies in both `{place[name]}` and `{shard}`")
            place[name] = shard
            plain, dtype = _PLAIN.get(entry.dtype), dtypes.BY_SAFETENSORS.get(entry.dtype)
            stored = (
                None if dtype is None else StoredTensor(name, dtype, entry.shape, shard, entry.offset, entry.length)
            )
            if plain is None or stored is None:
                unusable[name] = entry.dtype
                if stored is not None:
                    others[name] = stored
                continue
            weights[name] = Weight(name, plain, entry.shape, {"codes": stored})
    absent = [name for name, shard in promised.items() if place.get(name) != shard]
    if absent:
        count = f" (and {len(absent) - 1} more)" if len(absent) > 1 else ""
        raise CheckpointError(
            "import",
            f"`{INDEX}` places tensor {show(absent[0])}{count} in {show(promised[absent[0]])}, which does not hold it",
            "index and shards come from different downloads; download both again",
        )
    return WeightMap(weights, unusable=unusable, others=others)


def _hint(directory: Path) -> str:
    if not directory.is_dir():
        return "give the directory that holds config.json and the weights"
    names = {p.name for p in directory.iterdir()}
    if any(n.endswith(".gguf") for n in names):
        return "give the path of the GGUF file itself"
    if any(n.startswith("pytorch_model") or n.endswith((".pt", ".pth")) for n in names):
        return "these weights are a pickle, which can run code; convert them with safetensors first"
    return "give the directory that holds config.json and the weights"
