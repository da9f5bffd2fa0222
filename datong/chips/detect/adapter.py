"""Is PyTorch here with the vendor's adapter, and do the versions belong together?"""

from __future__ import annotations

from collections.abc import Iterator

from datong.chips.detect import versions
from datong.chips.detect.result import Finding, State
from datong.chips.detect.software import Software
from datong.chips.detect.words import whose
from datong.chips.schema import Pair, Stack


def check_torch(stack: Stack, have: Software, builder: Stack | None) -> Iterator[Finding]:
    """Is the right build of torch installed? `builder`: whose build it is, if a vendor's."""
    pair = versions.best_pair(stack, have.torch, have.toolkit)
    suffix = stack.identity.torch_version_suffix
    if have.torch is None:
        yield _advice(stack, "torch", "missing", "torch is not installed", _get_torch(stack, pair), pair)
    elif stack.adapter.kind == "cuda-build" and suffix.usable and not have.vendor_torch:
        text = f"torch {have.torch} is not {whose(stack.vendor)} build, whose version ends in `{suffix.value}…`"
        yield Finding(stack.name, "torch", "broken", text, _get_torch(stack, pair), suffix.grade, suffix.source)
    elif stack.adapter.kind == "cuda" and versions.local(have.torch) == "cpu":
        text = f"torch {have.torch} is a build for the CPU alone"
        yield _advice(stack, "torch", "broken", text, _get_torch(stack, pair), pair)
    elif builder and builder.name != stack.name and not have.vendor_torch:
        text = f"torch {have.torch} is {whose(builder.vendor)} build, {stack.vendor} needs {_kind(stack)}"
        hint = f"make a Python environment of its own for {stack.vendor}: {_get_torch(stack, pair)}"
        yield _advice(stack, "torch", "broken", text, hint, pair)
    else:
        own = f", {whose(stack.vendor)} build" if have.vendor_torch else ""
        yield Finding(stack.name, "torch", "ok", f"torch {have.torch}{own}")


def check_adapter(stack: Stack, have: Software) -> Iterator[Finding]:
    """Is the adapter installed, and for this torch and this toolkit?"""
    package = stack.adapter.package
    if stack.adapter.kind == "unknown":
        text = f"how PyTorch reaches {stack.vendor} chips is not known to us"
        yield Finding(
            stack.name, "adapter", "missing", text, f"ask {stack.vendor}, and fill in chips/data/{stack.name}.toml"
        )
        return
    if stack.adapter.kind != "privateuse1":
        if have.vendor_torch and stack.adapter.kind == "cuda-build" and stack.toolkit.pairs:
            yield from _versions(stack, have, None)
        return
    if not package.usable or not package.value:
        text = f"the name of {whose(stack.vendor)} PyTorch adapter is not known to us"
        yield Finding(stack.name, "adapter", "note", text, "", package.grade, package.source)
    elif have.adapter is None:
        pair = versions.best_pair(stack, have.torch, have.toolkit)
        text = f"{package.value} is not installed"
        yield _advice(stack, "adapter", "missing", text, _install(stack, package.value, pair, have), pair)
    else:
        yield from _versions(stack, have, have.adapter)


def _versions(stack: Stack, have: Software, adapter: str | None) -> Iterator[Finding]:
    """The installed versions against the published pairs, and against the versions of torch the adapter exists for."""
    name = stack.adapter.package.value or "adapter"
    shown = f"{name} {adapter}" if adapter else f"torch {have.torch}"
    pairs = [p for p in stack.toolkit.pairs if p.grade in ("A", "B")]
    if any(versions.fits(p, have.torch, adapter, have.toolkit) for p in pairs):
        yield Finding(stack.name, "adapter", "ok", f"{shown}{_with(have, adapter)}: versions that belong together")
        return
    if adapter and have.torch and not versions.same(adapter, have.torch) and _tied(stack, pairs):
        wanted = next((p for p in pairs if versions.same(p.adapter, adapter)), None)
        need = wanted.torch if wanted else ".".join(map(str, versions.number(adapter)[:3]))
        text = f"{shown} is made for torch {need}, and torch {have.torch} is installed"
        pair = versions.best_pair(stack, have.torch, have.toolkit)
        hint = _get_torch(stack, wanted) if wanted else _install(stack, name, pair, have)
        yield _advice(stack, "adapter", "broken", text, hint, wanted or pair)
        return
    listed = stack.adapter.torch_versions
    known = listed.usable and any(versions.same(have.torch, v) for v in listed.value or ())
    text = f"{shown}{_with(have, adapter)}: " + (
        "no published pair has these versions together" if pairs else "which versions belong together is not published"
    )
    if listed.usable and not known:
        text += f"; known for torch {', '.join(listed.value or ())}"
    pair = versions.best_pair(stack, have.torch, have.toolkit)
    hint = f"published: torch {pair.torch}, {pair.adapter}, {pair.toolkit}" if pair else ""
    yield _advice(stack, "adapter", "note", text, hint, pair)


def _tied(stack: Stack, pairs: list[Pair]) -> bool:
    """Does the adapter carry torch's version number? In every pair that is published, then."""
    return bool(pairs) and all(versions.same(p.torch, p.adapter) for p in pairs)


def _with(have: Software, adapter: str | None) -> str:
    parts = [f"torch {have.torch}"] if adapter and have.torch else []
    parts += [f"toolkit {have.toolkit}"] if have.toolkit else []
    return f" with {' and '.join(parts)}" if parts else ""


def _kind(stack: Stack) -> str:
    return "its own" if stack.identity.torch_version_suffix.usable else "the stock build"


def _get_torch(stack: Stack, pair: Pair | None) -> str:
    """Where torch comes from: the vendor, if it is the vendor's build, else PyPI."""
    wanted = f"torch=={pair.torch}" if pair else "torch"
    if stack.identity.torch_version_suffix.usable:
        return f"get {whose(stack.vendor)} {wanted}{_source(stack)}"
    return f"pip install {wanted}"


def _install(stack: Stack, package: str, pair: Pair | None, have: Software) -> str:
    """How to get the adapter, and what the version goes with.

    `pip install` is said only of packages that the descriptor saw on PyPI: a stranger may own the name there.
    """
    version = pair.adapter.split()[-1] if pair else ""
    wanted = f"{package}=={version}" if version else package
    public = stack.adapter.package.source.startswith("PyPI")
    text = f"pip install {wanted}" if public else f"get {wanted}{_source(stack)}"
    if pair is None:
        return text
    together = f", which goes with torch {pair.torch} and {pair.toolkit}"
    if have.torch and not versions.same(have.torch, pair.torch):
        together += f" (here: torch {have.torch})"
    return text + together


def _source(stack: Stack) -> str:
    where = stack.toolkit.install.value
    return f" ({where})" if where else f" from {stack.vendor}"


def _advice(stack: Stack, what: str, state: State, text: str, hint: str, pair: Pair | None) -> Finding:
    grade, source = (pair.grade, pair.source) if pair else (stack.adapter.package.grade, stack.adapter.package.source)
    known = grade != "unknown"
    return Finding(stack.name, what, state, text, hint, grade if known else "", source if known else "")
