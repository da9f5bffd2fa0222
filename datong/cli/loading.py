"""Opening a model for a verb that runs it: progress bars, and a word when something runs elsewhere than asked."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from datong.cli.console import err, progress, warn
from datong.cli.evidence import label
from datong.errors import FallbackWarning, InvalidRequest, TemplateError, TokenizerError

if TYPE_CHECKING:
    from datong.engine.model import Model
    from datong.engine.results import Result


def open_model(name: str, device: str, *, text: bool = True, own: Iterable[str] | None = None, **options: Any) -> Model:
    """`engine.load.load` with bars on stderr; `options` go to it, and those of `own`, each `NAME=VALUE`.

    Raises as it does, and TokenizerError if `text` needs a tokenizer.
    """
    from datong.engine.load import load

    options |= options_of(own or (), options)
    with progress(f"opening {name}") as report, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FallbackWarning)
        model = load(name, device, progress=report, **options)
    if text_of_evidence := label(model):
        err.print(text_of_evidence, style="yellow", markup=False)
    for warning in caught:
        warn(str(warning.message).replace("`strict`", "--strict"))
    if text and model.package.tokenizer_file is None:
        raise TokenizerError(
            "load",
            f"`{name}` has no tokenizer.json, which turns text into tokens",
            "put the model's tokenizer.json into its directory and import it again",
        )
    return model


def options_of(pairs: Iterable[str], others: Mapping[str, Any]) -> dict[str, str]:
    """Raises InvalidRequest for what is no pair, and for names that have a flag of their own."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise InvalidRequest("option", f"NAME=VALUE was expected, got `{pair}`", "such as: --option keep_mb=64")
        if name in others:
            raise InvalidRequest("option", f"`{name}` has a flag of its own", f"--{name.replace('_', '-')} {value}")
        found[name] = value
    return found


def print_placement(model: Model) -> None:
    """What ran where, on stderr: operators, what left its device and why, what crossed between devices."""
    from datong.compiler.explain import explain

    err.print(explain(model.engine.runner.program, placed=[placed for _, placed in model.placement()]), markup=False)


def print_timings(result: Result, interrupted: bool) -> None:
    """`prompt 34 tokens, 812 tokens/s · answer 120 tokens, 164 tokens/s · first after 0.05 s`, on stderr."""
    t = result.timings
    if interrupted:
        err.print("stopped" if result.tokens else "stopped before the first token", style="yellow")
    if not result.tokens:
        return
    cached = f" ({result.cached_tokens} cached)" if result.cached_tokens else ""
    rate = f", {t.decode_rate:.1f} tokens/s" if t.decode_tokens else ""
    guessed = f" · {t.accepted_tokens} of {t.guessed_tokens} guesses right" if t.guessed_tokens else ""
    cut = " · cut off: --max-tokens or the context is used up" if result.finish_reason == "length" else ""
    err.print(
        f"prompt {result.prompt_tokens} tokens{cached}, {t.prefill_rate:.0f} tokens/s · "
        f"answer {len(result.tokens)} tokens{rate} · first after {t.time_to_first_token:.2f} s{guessed}{cut}",
        style="dim",
        markup=False,
    )


def text_of(text: str, what: str) -> str:
    """What the user typed, if it is text. Raises InvalidRequest when it is empty or was no UTF-8."""
    if not text.strip():
        raise InvalidRequest("run", f"{what} should hold a text, it is empty", 'quote it: datong run MODEL "Hello"')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            "run", f"{what} should be UTF-8, it is not from character {error.start} on", "iconv -t UTF-8 converts text"
        ) from None
    return text


def prompt_of(model: Model, text: str, system: str | None, raw: bool) -> str | list[dict[str, str]]:
    """A conversation where the package has a chat template and `raw` is not asked for; otherwise the text itself."""
    if raw:
        if system:
            raise InvalidRequest("run", "--system needs the chat template, --raw leaves it out", "drop one of the two")
        return text
    if model.tokenizer.chat_template() is None:
        if system:
            raise InvalidRequest("run", "--system needs a chat template, the package has none", "drop --system")
        err.print("note: this package has no chat template, the prompt is continued as it is", markup=False)
        return text
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": text}]


def need_chat_template(model: Model, name: str) -> None:
    """Compile it. Raises TemplateError when it is missing or broken, before the first line is typed."""
    if model.tokenizer.chat_template() is None:
        raise TemplateError("chat", f"`{name}` has no chat template, which conversations need", "use: datong run")
    model.chat_template()
