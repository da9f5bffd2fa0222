"""The list of verbs. Each lives in its own file and imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from datong import __version__
from datong.cli import (
    bench,
    bench_serve,
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


class DefaultCommand(TyperGroup):
    """`datong bench MODEL` is `datong bench model MODEL`: what names no command goes to the first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name in where it is missing."""
        if args and args[0] not in (*self.commands, "--help"):
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


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
measure = typer.Typer(cls=DefaultCommand, no_args_is_help=True, rich_markup_mode=None)
measure.command("model")(bench.bench)
measure.command("serve")(bench_serve.bench_serve)
app.add_typer(measure, name="bench", help="Measure a model, or a server under load.")
app.command("profile")(profile.profile)
app.command("devices")(devices.devices)
app.command("conformance")(conformance.conformance)
app.command("doctor")(doctor.doctor)
app.command("new-backend")(new_backend.new_backend)
