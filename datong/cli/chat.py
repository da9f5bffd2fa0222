"""`datong chat`: a conversation in the terminal. Ctrl-C stops the answer, not the program; Ctrl-D ends it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from datong.cli import options
from datong.cli.console import err
from datong.errors import DatongError

if TYPE_CHECKING:
    from datong.engine.session import Session


def _help(session: Session, rest: str) -> None:
    for name, (_, meaning) in COMMANDS.items():
        err.print(f"  {name:<18}{meaning}", markup=False)
    err.print("  Ctrl-C stops an answer, Ctrl-D ends the conversation", markup=False)


def _clear(session: Session, rest: str) -> None:
    session.clear()
    err.print("the conversation starts anew", style="dim")


def _system(session: Session, rest: str) -> None:
    session.system = rest or None
    session.clear()
    err.print(f"system message {'set' if rest else 'removed'}; the conversation starts anew", style="dim")


def _history(session: Session, rest: str) -> None:
    for message in session.messages:
        err.print(f"{message['role']}: {message['content']}", markup=False)


def _set(session: Session, rest: str) -> None:
    from datong.engine.sampler import SamplingParams

    if not rest:
        err.print(", ".join(f"{k}={v}" for k, v in session.options.items()), markup=False)
        return
    name, _, value = rest.partition(" ")
    kinds = {"max_tokens": int, "top_k": int, "seed": int, "temperature": float, "top_p": float, "min_p": float,
             "repetition_penalty": float}  # fmt: skip
    if name not in kinds:
        raise DatongError("chat", f"`{name}` is no setting", f"settings: {', '.join(kinds)}")
    try:
        changed = {**session.options, name: kinds[name](value)}
    except ValueError:
        raise DatongError("chat", f"`{name}` takes a number, `{value}` came") from None
    SamplingParams(**{k: v for k, v in changed.items() if k != "max_tokens"})  # refuses values out of range
    session.options = changed


def _quit(session: Session, rest: str) -> None:
    raise EOFError


COMMANDS: dict[str, tuple[Callable[[Session, str], None], str]] = {
    "/help": (_help, "this list"),
    "/clear": (_clear, "forget the conversation"),
    "/system TEXT": (_system, "set the system message; without TEXT, remove it"),
    "/set NAME VALUE": (_set, "a sampling setting: /set temperature 0.7; without NAME, show them"),
    "/history": (_history, "show the conversation"),
    "/quit": (_quit, "end"),
}
ACTIONS = {name.split()[0]: action for name, (action, _) in COMMANDS.items()}


def chat(
    model: options.Model,
    max_tokens: options.MaxTokens = 1024,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    system: options.System = None,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    isa: options.Isa = None,
    cache_dtype: options.CacheDtype = None,
    context: options.Context = None,
    strict: options.Strict = False,
) -> None:
    """Talk with a model. `/help` lists the commands."""
    from datong.cli.loading import open_model

    opened = open_model(
        model, device, threads=threads, isa=isa, cache_dtype=cache_dtype, context=context, strict=strict
    )
    opened.chat_template()  # a package without one is refused before the first line is typed
    session = opened.session(
        system,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    if sys.stdin.isatty():
        import readline  # noqa: F401  # gives input() line editing and history

        err.print(f"{opened.package.manifest.model.name} on {device} · /help for commands", style="dim", markup=False)
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            break
        except KeyboardInterrupt:
            err.print("\nCtrl-D or /quit ends the conversation", style="dim")
            continue
        try:
            if line and not _turn(session, line):
                break
        except DatongError as error:  # a bad setting, or a full context: the conversation goes on
            from datong.cli.console import report_error

            report_error(error)


def _turn(session: Session, line: str) -> bool:
    """One line typed; False ends the conversation."""
    if line.startswith("/"):
        name, _, rest = line.partition(" ")
        if name not in ACTIONS:
            raise DatongError("chat", f"`{name}` is no command", "/help lists them")
        try:
            ACTIONS[name](session, rest.strip())
        except EOFError:
            return False
        return True
    from datong.cli.loading import print_timings

    chunks = session.stream(line)
    try:
        for chunk in chunks:
            sys.stdout.write(chunk.text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        err.print("\nstopped", style="yellow")
    finally:
        chunks.close()  # type: ignore[attr-defined]  # a generator: gives the blocks back
    sys.stdout.write("\n")
    sys.stdout.flush()
    if session.last is not None:
        print_timings(session.last)
    return True
