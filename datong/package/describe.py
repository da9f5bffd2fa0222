"""What `datong inspect` shows: facts of the manifest as plain data, and as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from datong.package.reader import Package

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

CACHE_BYTES = {"f32": 4, "f16": 2}


def describe(package: Package) -> dict[str, Any]:
    """Everything worth knowing about a package, JSON-able; reads no weights."""
    manifest = package.manifest
    context = manifest.context_length
    return {
        "path": str(package.root),
        "weights_path": str(package.weights_root),
        "format_version": manifest.format_version,
        "fingerprint": package.fingerprint,
        "model": msgspec.to_builtins(manifest.model),
        "parameters": manifest.weights.parameters,
        "weight_bytes": manifest.weights.bytes,
        "formats": msgspec.to_builtins(manifest.weights.formats),
        "context_length": context,
        "vocab_size": manifest.vocab_size,
        "cache": {
            "layers": msgspec.to_builtins(manifest.memory.cache),
            "bytes_per_token": {name: manifest.cache_bytes(1, size) for name, size in CACHE_BYTES.items()},
            "bytes_at_full_context": {name: manifest.cache_bytes(context, size) for name, size in CACHE_BYTES.items()},
            "state_bytes": manifest.memory.state_bytes,
        },
        "parallel": msgspec.to_builtins(manifest.parallel),
        "operator_set": msgspec.to_builtins(manifest.operator_set),
        "files": msgspec.to_builtins(manifest.files),
        "sealed": manifest.sealed,
        "hashed_files": sum(f.sha256 is not None for f in manifest.files),
        "golden_vectors": len(manifest.goldens),
        "tokenizer": package.tokenizer_file is not None,
        "chat_template": manifest.text.chat_template_sha256 is not None,
        "ignored": msgspec.to_builtins(manifest.ignored),
    }


def size(count: int) -> str:
    """Bytes for people: 93.8 MiB."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def number(count: int) -> str:
    """A count for people: 134.5 M."""
    for limit, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return str(count)


def render(info: dict[str, Any]) -> Group:
    """What `datong inspect` prints of `describe`'s result: rich tables, one below the other."""
    from rich.console import Group

    made = [_summary(info), _formats(info), _operators(info), _files(info)]
    if any(info["ignored"].values()):
        made.append(_ignored(info))
    return Group(*(part for table in made for part in (table, "")))


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim", title_style="bold")
    table.min_width = len(title)  # else rich wraps the title to the width of the columns
    for name in columns:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left", overflow="fold")
    return table


def _row(table: Table, *cells: object) -> None:
    """Add a row of plain text: names come from strangers and may look like rich's markup."""
    from rich.text import Text

    table.add_row(*(Text(str(cell)) for cell in cells))


def _summary(info: dict[str, Any]) -> Table:
    model, cache = info["model"], info["cache"]
    table = _table(model["name"], "", "")
    table.show_header = False
    per_token, full = cache["bytes_per_token"], cache["bytes_at_full_context"]
    _row(table, "family", model["family"])
    _row(table, "licence", model["licence"] or "not stated")
    _row(table, "source", model["source"])
    _row(table, "parameters", number(info["parameters"]))
    _row(table, "weights", size(info["weight_bytes"]))
    _row(table, "context", f"{info['context_length']} tokens")
    _row(table, "vocabulary", f"{info['vocab_size']} tokens")
    _row(table, "cache per token", f"{size(per_token['f16'])} (f16), {size(per_token['f32'])} (f32)")
    _row(table, "cache at full context", f"{size(full['f16'])} (f16), {size(full['f32'])} (f32)")
    if cache["state_bytes"]:
        _row(table, "state per sequence", size(cache["state_bytes"]))
    _row(table, "chat template", "yes" if info["chat_template"] else "no")
    _row(table, "sealed", _sealed(info))
    return table


def _sealed(info: dict[str, Any]) -> str:
    if info["sealed"]:
        return f"yes, with {info['golden_vectors']} golden vectors"
    return f"no ({info['hashed_files']} of {len(info['files'])} files have a content hash)"


def _formats(info: dict[str, Any]) -> Table:
    table = _table("weight formats", "format", ">weights", ">parameters", ">size")
    for row in info["formats"]:
        _row(table, row["format"], row["weights"], number(row["parameters"]), size(row["bytes"]))
    return table


def _operators(info: dict[str, Any]) -> Table:
    spec = info["operator_set"]
    title = f"operators (set {spec['version']}, ONNX opset {spec['onnx_opset']}, IR {spec['onnx_ir']})"
    table = _table(title, "operator", ">count", "types")
    for row in spec["operators"]:
        seen = sorted({dtype for slot in (*row["inputs"], *row["outputs"]) for dtype in slot.split("|") if dtype})
        name = f"{row['domain']}:{row['op']}" if row["domain"] else row["op"]
        _row(table, name, row["count"], ", ".join(seen))
    return table


def _files(info: dict[str, Any]) -> Table:
    table = _table("files", "file", "kind", ">size", "SHA-256")
    for row in info["files"]:
        _row(table, row["path"], row["kind"], size(row["size"]), (row["sha256"] or "not hashed")[:16])
    return table


def _ignored(info: dict[str, Any]) -> Table:
    """Grouped by reason: a vision tower has hundreds of tensors and one reason."""
    table = _table("not used", "what", "names", "reason")
    for what, label in (("config_keys", "config key"), ("tensors", "tensor")):
        groups: dict[str, list[str]] = {}
        for name, reason in sorted(info["ignored"][what].items()):
            groups.setdefault(reason, []).append(name)
        for reason, names in groups.items():
            shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
            _row(table, label, shown, reason)
    return table
