"""The commands of `datong chat`: lines that begin with `/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from datong.cli.console import err
from datong.errors import DatongError, InvalidRequest

if TYPE_CHECKING:
    from datong.engine.session import Session

SETTINGS: dict[str, type] = {
    "max_tokens": int, "temperature": float, "top_k": int, "top_p": float, "min_p": float,
    "repetition_penalty": float, "seed": int,
}  # fmt: skip


def execute(session: Session, line: str) -> bool:
    """Carry out one command; False ends the conversation. Raises DatongError when it is not known, or refused."""
    name, _, rest = line.partition(" ")
    if name == "/quit":
        return False
    if name not in _ACTIONS:
        raise DatongError("chat", f"`{name}` is no command", "/help lists them")
    _ACTIONS[name](session, rest.strip())
    return True


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for a value out of range."""
    from datong.engine.sampler import SamplingParams

    if settings["max_tokens"] < 1:
        raise InvalidRequest("chat", f"max_tokens should be a whole number from 1, got `{settings['max_tokens']}`")
    SamplingParams(**{name: value for name, value in settings.items() if name != "max_tokens"})


def _help(session: Session, rest: str) -> None:
    for name, meaning in COMMANDS.items():
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
    if not rest:
        shown = {name: value for name, value in session.options.items() if value is not None}
        err.print(", ".join(f"{name} {value}" for name, value in shown.items()), markup=False)
        return
    name, _, value = rest.partition(" ")
    if name not in SETTINGS:
        raise InvalidRequest("chat", f"`{name}` is no setting", f"settings: {', '.join(SETTINGS)}")
    try:
        changed = {**session.options, name: SETTINGS[name](value)}
    except ValueError:
        kind = "a whole number" if SETTINGS[name] is int else "a number"
        raise InvalidRequest("chat", f"`{name}` takes {kind}, `{value}` came") from None
    check_settings(changed)
    session.options = changed


COMMANDS = {
    "/help": "this list",
    "/clear": "forget the conversation",
    "/system TEXT": "set the system message; without TEXT, remove it",
    "/set NAME VALUE": "a sampling setting: /set temperature 0.7; without NAME, show them",
    "/history": "show the conversation",
    "/quit": "end",
}
_ACTIONS: dict[str, Callable[[Session, str], None]] = {
    "/help": _help, "/clear": _clear, "/system": _system, "/set": _set, "/history": _history,
}  # fmt: skip
