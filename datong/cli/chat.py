"""`datong chat`: a conversation in the terminal. Ctrl-C stops the answer, not the program; Ctrl-D ends it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from datong.cli import options
from datong.cli.console import err, report_error, write
from datong.errors import ContextOverflow, DatongError

if TYPE_CHECKING:
    from datong.engine.session import Session


def chat(
    model: options.Model,
    max_tokens: options.MaxTokens = 1024,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed = None,
    system: options.System = None,
    device: options.Device = "cpu",
    split: options.Split = None,
    threads: options.Threads = None,
    isa: options.Isa = None,
    cache_dtype: options.CacheDtype = None,
    activations: options.Activations = None,
    own: options.Own = None,
    context: options.Context = None,
    speculate: options.Speculate = None,
    strict: options.Strict = False,
) -> None:
    r"""Talk with a model; /help lists the commands.

    Ctrl-C stops an answer, Ctrl-D ends the conversation; a line that ends with \ goes on in the next one.

    Sampling settings that are not given come from the package's generation_config.json; without one, temperature 0.6
    and top-p 0.9.
    """
    from datong.cli.chat_commands import check_settings
    from datong.cli.loading import need_chat_template, open_model
    from datong.cli.sampling import CONVERSATION, sampling, sentence

    opened = open_model(
        model,
        device,
        split=split,
        threads=threads,
        isa=isa,
        cache_dtype=cache_dtype,
        activations=activations,
        own=own,
        context=context,
        speculate=speculate,
        strict=strict,
    )
    need_chat_template(opened, model)
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
             "repetition_penalty": repetition_penalty, "seed": seed}  # fmt: skip
    settings = sampling(opened.package, given, CONVERSATION)
    check_settings({"max_tokens": max_tokens, **settings})
    session = opened.session(system, max_tokens=max_tokens, **settings)
    if sys.stdin.isatty():
        err.print(
            f"{model} on {device}, context {opened.context} tokens, {sentence(settings)} · /help for commands",
            style="dim",
            markup=False,
        )
    _converse(session)


def _converse(session: Session) -> None:
    """Lines until the end of the input."""
    while True:
        try:
            line = read_message()
        except EOFError:
            if sys.stdin.isatty():
                err.print()  # the shell's prompt gets a line of its own
            return
        except KeyboardInterrupt:
            err.print("\nCtrl-D or /quit ends the conversation", style="dim")
            continue
        try:
            if line and not _turn(session, line):
                return
        except KeyboardInterrupt:
            err.print("\nstopped", style="yellow")
        except ContextOverflow as error:
            report_error(ContextOverflow(error.where, error.message, "/clear forgets the conversation"))
        except DatongError as error:  # such as a bad setting: the conversation goes on
            report_error(error)


def read_message() -> str:
    r"""One message, without blanks around it. Pasted lines come as one; a `\` at the end of a line asks for the next.

    Raises EOFError at the end of the input.
    """
    lines: list[str] = []
    while True:
        line = _read_line("> " if not lines else ". ")
        if not line.endswith("\\"):
            return "\n".join([*lines, line]).strip()
        lines.append(line[:-1])


def _read_line(prompt: str) -> str:
    if not sys.stdin.isatty():
        return input()
    import readline  # gives input() line editing, history, and lines of any length

    if readline.__doc__ and "libedit" not in readline.__doc__:
        readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines come as one message
    if sys.stdout.isatty():
        return input(prompt)
    err.print(prompt, end="")  # stdout carries answers only
    return input()


def _turn(session: Session, line: str) -> bool:
    """One message typed; False ends the conversation."""
    from datong.cli import chat_commands
    from datong.cli.loading import print_timings, text_of

    if line.startswith("/"):
        return chat_commands.execute(session, line)
    chunks = session.stream(text_of(line, "the line"))
    shown, interrupted = "", False
    try:
        for chunk in chunks:
            write(chunk.text)
            shown = chunk.text or shown
    except KeyboardInterrupt:
        interrupted = True
    finally:
        chunks.close()  # type: ignore[attr-defined]  # a generator: gives the blocks back
    write("" if shown.endswith("\n") else "\n")
    if session.last is not None:
        print_timings(session.last, interrupted)
    return True
