"""`datong new-backend`: a project to fill in for a new chip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datong.cli.console import write


def new_backend(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What users will type: lower-case letters and digits.")],
    directory: Annotated[Path | None, typer.Option("--dir", help="Of the project; default: datong-NAME here.")] = None,
    language: Annotated[str, typer.Option(metavar="NAME", help="python or c.")] = "python",
) -> None:
    """Make a project for a new chip.

    Its tests are green at once; replace one operator after the other by the chip's own.
    """
    from datong.backends.template.make import new_backend as make

    project = make(name, directory, language=language)
    steps = {
        "python": ('pip install -e ".[test]"', "pytest", f"datong conformance --device {name}"),
        "c": ("make test", f"DATONG_PLUGINS=$PWD/libdatong_{name}.so datong devices"),
    }
    lines = [f"made {project}", "", "next:", *(f"  {step}" for step in (f"cd {project}", *steps[language]))]
    write("\n".join([*lines, "then: README.md there, and docs/howto/add-a-chip.md of Datong", ""]))
