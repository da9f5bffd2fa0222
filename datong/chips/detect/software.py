"""Steps 4 and 5: management libraries and Python distributions. Looked for, never loaded.

Software without a card proves no chip; it tells apart stacks that share cards, and explains what is missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from datong.chips.detect.machine import Machine
from datong.chips.schema import Stack

_LIBRARIES = (
    "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64", "/lib", "/lib64",
    "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
)  # fmt: skip


@dataclass(frozen=True)
class Software:
    """What is installed for one stack."""

    root: str | None  # of the toolkit
    root_from: str  # the variable that names it, or ""
    stale_variables: tuple[str, ...]  # variables that name a directory that is not there
    toolkit: str | None  # version
    library: str | None  # path of the management library
    torch: str | None  # version of the distribution `torch`, with its local part
    adapter: str | None  # version of the adapter's distribution
    vendor_torch: bool  # is `torch` the vendor's own build?


def look(machine: Machine, stack: Stack) -> Software:
    """What is installed for this stack."""
    root, variable, stale = _root(machine, stack)
    package, suffix = stack.adapter.package, stack.identity.torch_version_suffix
    torch = machine.distribution("torch")
    local = (torch or "").partition("+")[2]
    vendor_torch = bool(suffix.usable and suffix.value and local.startswith(suffix.value.lstrip("+")))
    own = package.value if package.usable and package.value and package.value != "torch" else None
    return Software(
        root=root,
        root_from=variable,
        stale_variables=stale,
        toolkit=_version(machine, stack, root) if root else None,
        library=_library(machine, stack, root),
        torch=torch,
        adapter=machine.distribution(own) if own else None,
        vendor_torch=vendor_torch,
    )


def roots(machine: Machine, stack: Stack) -> list[str]:
    """Toolkit directories that are here, the one in use first."""
    fact = stack.toolkit.roots
    first = _root(machine, stack)[0]
    rest = [r for r in (fact.value or ()) if r != first and machine.exists(r)] if fact.usable else []
    return [first, *rest] if first else rest


def _root(machine: Machine, stack: Stack) -> tuple[str | None, str, tuple[str, ...]]:
    variables, known = stack.toolkit.root_variables, stack.toolkit.roots
    stale: list[str] = []
    for name in (variables.value or ()) if variables.usable else ():
        path = machine.environ.get(name, "").strip()
        if path.startswith("/") and machine.exists(path):
            return path.rstrip("/"), name, tuple(stale)
        stale += [f"{name}={path}"] if path else []
    found = next((r for r in (known.value or ()) if machine.exists(r)), None) if known.usable else None
    return found, "", tuple(stale)


def _version(machine: Machine, stack: Stack, root: str) -> str | None:
    files, pattern = stack.toolkit.version_files, stack.toolkit.version_pattern
    for name in (files.value or ()) if files.usable else ():
        text = machine.read(f"{root}/{name}")
        match = re.search(pattern.value, text, re.MULTILINE) if text and pattern.usable and pattern.value else None
        if match:
            return (match[1] if match.re.groups else match[0]).strip()[:60]
    return None


def _library(machine: Machine, stack: Stack, root: str | None) -> str | None:
    fact = stack.identity.library
    extra = [d for d in machine.environ.get("LD_LIBRARY_PATH", "").split(":") if d.startswith("/")]
    directories = [*extra, *([f"{root}/lib", f"{root}/lib64"] if root else []), *_LIBRARIES]
    for name in (fact.value or ()) if fact.usable else ():
        candidates = [name] if name.startswith("/") else [f"{d.rstrip('/')}/{name}" for d in directories]
        for path in candidates:
            if machine.exists(path):
                return path
    return None
