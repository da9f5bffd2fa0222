"""The list of verbs. Each lives in its own file and imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from datong import __version__
from datong.cli import (
    bench,
    chat,
    compile_,
    conformance,
    devices,
    doctor,
    import_,
    inspect_,
    models,
    new_backend,
    profile,
    quantize,
    run,
    seal,
    serve,
    verify,
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Datong: language models as packages that run on any integrated chip.",
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"datong {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("models")(models.models)
app.command("import")(import_.import_)
app.command("inspect")(inspect_.inspect_)
app.command("verify")(verify.verify)
app.command("quantize")(quantize.quantize)
app.command("seal")(seal.seal)
app.command("compile")(compile_.compile_)
app.command("run")(run.run)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("bench")(bench.bench)
app.command("profile")(profile.profile)
app.command("devices")(devices.devices)
app.command("conformance")(conformance.conformance)
app.command("doctor")(doctor.doctor)
app.command("new-backend")(new_backend.new_backend)
