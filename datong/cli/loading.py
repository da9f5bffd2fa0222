"""Opening a model for a verb that runs it: progress bars, and a word when something runs elsewhere than asked."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from datong.cli.console import err, progress
from datong.errors import DatongError

if TYPE_CHECKING:
    from datong.engine.model import Model
    from datong.engine.results import Result


def open_model(
    name: str,
    device: str,
    *,
    threads: int | None,
    isa: str | None,
    cache_dtype: str | None,
    context: int | None,
    strict: bool,
) -> Model:
    """`engine.load.load` with bars on stderr. Raises as it does."""
    from datong.engine.load import load

    with progress() as report:
        model = load(
            name,
            device,
            threads=threads,
            isa=isa,
            cache_dtype=cache_dtype,
            context=context,
            strict=strict,
            progress=report,
        )
    _tell_what_runs_elsewhere(model, device)
    return model


def _tell_what_runs_elsewhere(model: Model, device: str) -> None:
    asked = model.engine.runner.program.parts[0].backend if device == "reference" else device.partition(":")[0]
    elsewhere = Counter((backend, placed.op) for backend, placed in model.placement() if backend != asked)
    for (backend, op), count in elsewhere.items():
        err.print(
            f"warning: {op} x{count} runs on {backend}, not on {device}; `datong compile --explain` says why",
            markup=False,
        )


def print_timings(result: Result) -> None:
    """`prompt 34 tokens, 812 tokens/s · answer 120 tokens, 164 tokens/s · first token after 0.05 s`, on stderr."""
    t = result.timings
    cached = f" ({result.cached_tokens} from the cache)" if result.cached_tokens else ""
    err.print(
        f"prompt {result.prompt_tokens} tokens{cached}, {t.prefill_rate:.0f} tokens/s · "
        f"answer {len(result.tokens)} tokens, {t.decode_rate:.1f} tokens/s · "
        f"first token after {t.time_to_first_token:.2f} s",
        style="dim",
        markup=False,
    )


def prompt_of(model: Model, text: str, system: str | None, raw: bool) -> str | list[dict[str, str]]:
    """A conversation where the package has a chat template and `raw` is not asked for; otherwise the text itself."""
    if raw:
        if system:
            raise DatongError("run", "--system needs the chat template, --raw leaves it out", "drop one of the two")
        return text
    if model.tokenizer.chat_template() is None:
        err.print("note: this package has no chat template, the prompt is continued as it is", markup=False)
        return text
    messages = [{"role": "system", "content": system}] if system else []
    return [*messages, {"role": "user", "content": text}]
