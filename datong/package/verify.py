"""Is the package what it says it is? Every check is named, and ends as ok, failed or skipped, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np

from datong.errors import DatongError, IntegrityError
from datong.package import texts
from datong.package.files import Progress, sha256_file
from datong.package.manifest import GRAPH, Golden
from datong.package.reader import AGAIN, MAX_GRAPH, Package, open_package
from datong.package.seal import LogitsFn, run

if TYPE_CHECKING:
    from rich.table import Table

Status = Literal["ok", "failed", "skipped"]

# Largest |difference| of a golden logit, as a share of the largest |logit| of the vector. f32: another order of the
# same sums (the bound of tests/data/goldens, 2e-3 at logits of 5 to 8). Others: a backend may round activations to the
# type of the weights, 8 bits for block formats. Measured, `cpu` against `reference`: f32 1.5e-6, f16 7e-4, bf16 1.2e-3
# at most (three golden families); SmolLM2-135M, Q4_1 and Q8_0, 8e-3 to 1.6e-2 on the four prompts.
TOLERANCE = {"f32": 4e-4, "f16": 2e-2, "bf16": 2e-2}
TOLERANCE_BLOCKS = 5e-2


@dataclass(frozen=True)
class Check:
    """One check and its end."""

    name: str
    status: Status
    reason: str = ""  # of a failure or a skip; a number worth showing when ok
    hint: str | None = None


@dataclass
class Report:
    """All checks, in order."""

    checks: list[Check] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Did nothing fail? Skipped checks do not count against a package."""
        return all(c.status != "failed" for c in self.checks)

    def raise_if_failed(self) -> None:
        """Raises IntegrityError with the first failure, and how many there are."""
        failed = [c for c in self.checks if c.status == "failed"]
        if failed:
            more = f" ({len(failed)} checks failed)" if len(failed) > 1 else ""
            raise IntegrityError("verify", f"{failed[0].name}: {failed[0].reason}{more}", failed[0].hint)

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        return {
            "ok": self.ok,
            "checks": [{"name": c.name, "status": c.status, "reason": c.reason} for c in self.checks],
        }

    def render(self) -> Table:
        """A rich table for people: what was checked, how it ended, why."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("check", "", "what was found"):
            table.add_column(name, overflow="fold")
        styles = {"ok": "green", "failed": "bold red", "skipped": "yellow"}
        for c in self.checks:
            found = f"{c.reason}\nhint: {c.hint}" if c.hint else c.reason
            table.add_row(Text(c.name), Text(c.status, style=styles[c.status]), Text(found))
        return table


class _Skip(Exception):  # control flow inside this file
    """The check cannot be made; the text says why."""


def verify(
    package: Package | str | Path,
    logits_fn: LogitsFn | None = None,
    progress: Progress | None = None,
    *,
    tolerance: float | None = None,
    deep: bool = False,
) -> Report:
    """Check the package; never raises for what is wrong with it, see `Report.raise_if_failed`.

    Args:
        package:   opened, or where it lies.
        logits_fn: runs the model, ids [T] int64 -> [T, vocab] float32; without it the golden vectors are skipped.
        progress:  told of bytes hashed and read.
        tolerance: largest |difference| of a logit, as a share of the largest |logit|; default by weight format.
        deep:      read the weights as well: is every one a number?
    """
    report = Report()

    def check(name: str, body: Callable[[], str]) -> None:
        try:
            report.checks.append(Check(name, "ok", body()))
        except _Skip as e:
            report.checks.append(Check(name, "skipped", str(e)))
        except DatongError as e:
            report.checks.append(Check(name, "failed", f"[{e.where}] {e.message}", e.hint))

    opened: list[Package] = []

    def reopen() -> str:
        """Schema, containment, sizes, headers: what opening checks, on the files as they are now."""
        if isinstance(package, Package):
            opened.append(open_package(package.root, weights_root=package.weights_root))
        else:
            opened.append(open_package(package))
        return f"format {opened[0].manifest.format_version}, {len(opened[0].manifest.files)} files"

    check("manifest", reopen)
    if not opened:
        return report
    found = opened[0]
    for entry in found.manifest.files:
        check(f"hash {entry.path}", partial(_hash, found, entry.path, entry.sha256, progress))
    for name, body in (("offsets", _offsets), ("graph", _graph), ("operators", _operators), ("tokenizer", _text)):
        check(name, partial(body, found))
    if deep:
        check("finite", partial(_finite, found, progress))
    if not found.manifest.goldens:
        check("golden", partial(_skip, "no golden vectors: the package was not sealed with a backend"))
    for i, golden in enumerate(found.manifest.goldens):
        check(f"golden {i}", partial(_golden, found, golden, logits_fn, tolerance))
    return report


def _skip(reason: str) -> NoReturn:
    raise _Skip(reason)


def _finite(package: Package, progress: Progress | None) -> str:
    from datong.package.finite import check_finite  # brings onnx

    return check_finite(package, progress)


def _hash(package: Package, path: str, want: str | None, progress: Progress | None) -> str:
    if want is None:
        _skip("no content hash yet: run datong seal")
    got = sha256_file(package.path(path), progress)
    if got != want:
        raise IntegrityError(path, f"the content should have SHA-256 {str(want)[:12]}…, it has {got[:12]}…", AGAIN)
    return f"SHA-256 {got[:16]}…"


def _offsets(package: Package) -> str:
    from datong.package import graph

    count = 0
    for name in package.graphs():
        found = graph.externals(graph.parse(package.read(name, MAX_GRAPH), name), name)
        graph.check_externals(found, package.headers, name)
        count += len(found)
    return f"{count} initializers"


def _graph(package: Package) -> str:
    from datong.package import graph

    for name in package.graphs():
        graph.full_check(graph.parse(package.read(name, MAX_GRAPH), name), name)
    return "onnx.checker, full check"


def _operators(package: Package) -> str:
    from datong.package import graph

    uses = graph.requirements(graph.parse(package.read(GRAPH, MAX_GRAPH), GRAPH))
    if uses != package.manifest.operator_set:
        raise IntegrityError(
            "manifest", "`$.operator_set` should say what the graph uses, it says something else", AGAIN
        )
    return f"{len(uses.operators)} operators"


def _text(package: Package) -> str:
    names = [f.path for f in package.manifest.files if f.kind in ("tokenizer", "template")]
    if not names:
        _skip("the package carries no tokenizer")
    if texts.text_hashes({name: package.read(name) for name in names}) != package.manifest.text:
        raise IntegrityError(
            "manifest", "`$.text` should hash the tokenizer and chat template, it does not match", AGAIN
        )
    return ", ".join(names)


def _golden(package: Package, golden: Golden, logits_fn: LogitsFn | None, tolerance: float | None) -> str:
    if logits_fn is None:
        _skip("no backend was given to run the model")
    got = run(logits_fn, golden.ids, package.manifest.vocab_size)[golden.position]
    want = np.array(golden.logits, np.float64)
    scale = max(1.0, float(np.abs(want).max()))
    bound = tolerance if tolerance is not None else default_tolerance(package)
    error = float(np.abs(got[golden.tokens] - want).max()) / scale
    if error > bound:
        raise IntegrityError(
            "golden",
            f"the logits after {len(golden.ids)} tokens should be those of `{golden.backend}` within {bound:g}, they "
            f"differ by {error:.3g} of the largest",
            "the weights were changed, or the backend computes wrongly; compare with `--device reference`",
        )
    return f"differs by {error:.2g} of the largest logit, bound {bound:g}"


def default_tolerance(package: Package) -> float:
    """The bound of the least exact weight format in the package."""
    return max(TOLERANCE.get(f.format, TOLERANCE_BLOCKS) for f in package.manifest.weights.formats)
