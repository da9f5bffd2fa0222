"""`datong seal`: content hashes and golden vectors, so that anyone can verify the package later."""

from __future__ import annotations

from datong.cli import options
from datong.cli.console import err, progress


def seal(package: options.PackageDir, device: options.Device = "cpu") -> None:
    """Hash every file and record golden vectors.

    Golden vectors are the top logits of fixed prompts. Only datong.json is rewritten.
    """
    from datong.engine.load import load
    from datong.package.reader import open_package
    from datong.package.seal import seal as seal_package

    model = load(str(package), device=device)
    with progress() as report:
        seal_package(open_package(package), model.logits, backend=device, progress=report)
    err.print(f"sealed {package}: contents hashed, golden vectors from device {device}", markup=False)
