"""A Hugging Face directory -> Imported. Reads config, headers and small files; writes nothing, reads no weights."""

from __future__ import annotations

import re
from pathlib import Path

from datong.errors import ConfigError, ImportFailed
from datong.importer import assets, checkpoint, files
from datong.importer.dialogue.choose import dialogue_file
from datong.importer.imported import Imported, Progress
from datong.importer.quantization import table as quantization
from datong.importer.registry import build_model
from datong.importer.texts import TEMPLATE_FILES, template_of

MAX_CONFIG = 4_000_000  # bytes; real ones have a few thousand


def import_directory(src: Path, progress: Progress | None = None) -> Imported:
    """Understand the checkpoint in `src`, weights staying where they are.

    Args:
        src: directory with config.json and safetensors; need not be writable.
        progress: called while headers are read.

    Raises:
        ImportFailed: one of its kinds: unknown model, config, checkpoint, tokenizer.
        ContainmentError: a file name or link leads out of the directory.
    """
    if not src.is_dir():
        raise ImportFailed("import", f"`{src}` should be a directory", "give the directory that holds config.json")
    if not files.contained(src, "config.json").is_file():
        raise ConfigError("import", f"`config.json` is not in `{src.name}`", "give the directory that holds it")
    config = files.read_json(src, "config.json", MAX_CONFIG)
    weights = checkpoint.read_weights(src, progress)
    stated, tensors = quantization.apply(config, weights, src)
    built = build_model(stated, weights)
    carried = assets.carried_files(src)
    assets.check_tokenizer(src, carried)
    name, source = _origin(config.get("_name_or_path"), src.resolve())
    index = [checkpoint.INDEX] if (src / checkpoint.INDEX).is_file() else []
    return Imported(
        model=built.model,
        family=built.family,
        name=name,
        source=source,
        licence=assets.licence(src, carried),
        config=config,
        weights=weights,
        caches=built.caches,
        vocab_size=built.vocab_size,
        context_length=built.context_length,
        ignored_keys=built.ignored_keys,
        heads=built.heads,
        tensors=tensors,
        generated=_dialogue(src, carried, built.family),
        files=(*carried, *index, *checkpoint.weight_files(weights)) if not tensors else tuple(carried),
    )


def _dialogue(src: Path, carried: list[str], family: str) -> dict[str, bytes]:
    """`dialogue.json`, where the model's way to write tool calls is known; nothing for a model without tokenizer."""
    if not assets.has_tokenizer(carried):
        return {}
    texts = {name: files.read_bytes(src, name) for name in carried if name in TEMPLATE_FILES}
    return dialogue_file(template_of(texts), family)


def _origin(stated: object, root: Path) -> tuple[str, str]:
    """Name and source for the manifest, which carries no path of a machine.

    A hub cache (`models--owner--name/snapshots/<commit>`) says both; else the source is what the config states, where
    that looks like `owner/name`, and the directory's name otherwise.
    """
    if files.hub_blobs(root):
        owner_name = root.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
        return owner_name.rpartition("/")[2], f"hf:{owner_name}@{root.name}"
    if isinstance(stated, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", stated):
        return root.name, f"hf:{stated}"
    return root.name, f"directory:{root.name}"
