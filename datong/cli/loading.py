"""Opening a model for a verb that runs it: progress bars, and a word when something runs elsewhere than asked."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from datong.cli.console import err, progress, warn
from datong.errors import InvalidRequest, TemplateError, TokenizerError

if TYPE_CHECKING:
    from datong.engine.model import Model
    from datong.engine.results import Result


def open_model(name: str, device: str, *, text: bool = True, **options: Any) -> Model:
    """`engine.load.load` with bars on stderr; `options` go to it.

    Raises as it does, and TokenizerError if `text` needs a tokenizer.
    """
    from datong.engine.load import load

    with progress(f"opening {name}") as report:
        model = load(name, device, progress=report, **options)
    if text and model.package.tokenizer_file is None:
        raise TokenizerError(
            "load",
            f"`{name}` has no tokenizer.json, which turns text into tokens",
            "put the model's tokenizer.json into its directory and import it again",
        )
    _tell_what_runs_elsewhere(model, device)
    return model


def _tell_what_runs_elsewhere(model: Model, device: str) -> None:
    asked = model.engine.runner.program.parts[0].backend if device == "reference" else device.partition(":")[0]
    elsewhere = Counter((backend, placed.op) for backend, placed in model.placement() if backend != asked)
    for (backend, op), count in elsewhere.items():
        warn(f"{op} x{count} runs on {backend}, not on {device}; `datong compile --explain` says why")


def print_timings(result: Result, interrupted: bool) -> None:
    """`prompt 34 tokens, 812 tokens/s · answer 120 tokens, 164 tokens/s · first after 0.05 s`, on stderr."""
    t = result.timings
    if interrupted:
        err.print("stopped" if result.tokens else "stopped before the first token", style="yellow")
    if not result.tokens:
        return
    cached = f" ({result.cached_tokens} cached)" if result.cached_tokens else ""
    rate = f", {t.decode_rate:.1f} tokens/s" if t.decode_tokens else ""
    cut = " · cut off: --max-tokens or the context is used up" if result.finish_reason == "length" else ""
    err.print(
        f"prompt {result.prompt_tokens} tokens{cached}, {t.prefill_rate:.0f} tokens/s · "
        f"answer {len(result.tokens)} tokens{rate} · first after {t.time_to_first_token:.2f} s{cut}",
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
