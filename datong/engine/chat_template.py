"""Messages to the text that the model was trained on: the package's Jinja template, rendered as transformers does.

The same names are there (`messages`, `tools`, `documents`, `add_generation_prompt`, `bos_token` …, `raise_exception`,
`strftime_now`, `tojson` without HTML escapes, loop controls, the `generation` tag). What a template may not do is in
template_sandbox.py and template_budget.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from datong.errors import InvalidRequest, TemplateError

if TYPE_CHECKING:
    import jinja2

MAX_SOURCE = 128 << 10  # characters; published templates reach 30,000, and compiling this many takes 2 s
MAX_DEPTH = 64  # of lists and objects in messages and tools
REASONING = ("reasoning_content", "thinking", "reasoning")  # the first is what templates read

Message = Mapping[str, Any]


class ChatTemplate:
    """One compiled template. Raises TemplateError when the text is no template."""

    def __init__(self, source: str, specials: Mapping[str, str] | None = None) -> None:
        if len(source) > MAX_SOURCE:
            raise TemplateError("chat template", f"at most {MAX_SOURCE} characters were expected, got {len(source)}")
        self.source = source
        self._specials = dict(specials or {})
        self._template = _compile(source)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **extra: Any,
    ) -> str:
        """The prompt text.

        Args:
            messages: `{"role": …, "content": …}`, as in the OpenAI API.
            tools: JSON schemas of functions.
            add_generation_prompt: end with the beginning of an answer.
            extra: further variables that the template knows, such as `enable_thinking`.

        Raises:
            InvalidRequest: messages are no such list.
            TemplateError: the template refuses them, breaks, loops or reaches for what it may not.
        """
        from datong.engine.template_budget import Budget

        variables = {
            **self._specials,
            **plain(extra),
            "messages": check_messages(messages),
            "tools": plain(list(tools)) if tools else None,
            "documents": plain(extra.get("documents")),
            "add_generation_prompt": add_generation_prompt,
        }
        with Budget():
            return self._guarded(lambda: self._template.render(variables))

    def _guarded(self, run: Any) -> str:
        """Turn whatever a template can raise into one TemplateError with the line, where it is known."""
        import jinja2

        from datong.engine.template_budget import TemplateLimitError

        try:
            return str(run())
        except TemplateLimitError as e:
            raise TemplateError("chat template", f"it asked for {e}", _BROKEN) from None
        except jinja2.exceptions.SecurityError as e:
            raise TemplateError(
                "chat template", f"it reached for what it may not: {e}", "do not use templates that do this"
            ) from None
        except jinja2.exceptions.TemplateError as e:
            raise TemplateError("chat template", f"it refused the messages: {e}", _HINT) from None
        except OverflowError as e:  # of Jinja's `range`
            raise TemplateError("chat template", f"it asked for too much: {e}", _BROKEN) from None
        except RecursionError:
            raise TemplateError("chat template", "it calls itself without end", _HINT) from None
        except MemoryError:
            raise TemplateError("chat template", "it asked for more memory than there is", _HINT) from None
        except Exception as e:  # a template can fail in any way that Python can
            raise TemplateError("chat template", f"it failed with {type(e).__name__}: {e}", _HINT) from None


_BROKEN = "the template loops or is broken; use the model's original one"
_HINT = "are role and content of each message what this model's template expects?"


def _compile(source: str) -> jinja2.Template:
    """Parse and compile. Raises TemplateError with the line."""
    import jinja2

    from datong.engine.template_sandbox import ChatEnvironment

    environment = ChatEnvironment()
    environment.add_filter("tojson", _tojson)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as e:
        raise TemplateError("chat template", f"line {e.lineno} is no Jinja: {e.message}") from None
    except (SyntaxError, RecursionError, MemoryError, ValueError) as e:
        # Python's own limits: a hundred nested parentheses, twenty nested blocks
        raise TemplateError("chat template", f"it is nested too deeply to be compiled ({type(e).__name__})") from None


def check_messages(messages: object) -> list[dict[str, Any]]:
    """Messages as plain dicts, reasoning under the name that templates read. Raises InvalidRequest."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest("chat", "messages should be a list of {role, content}, with at least one")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequest("chat", f"message {i} should be an object with a `role`, got `{str(message)[:60]}`")
        found = plain(message)
        thought = next((found[key] for key in REASONING if found.get(key) is not None), None)
        if thought is not None:
            found = {"thinking": thought, **found, "reasoning_content": thought}
        checked.append(found)
    return checked


def plain(value: Any, depth: int = 0) -> Any:
    """A copy made of exact JSON types, so that a template meets no methods but theirs. Raises InvalidRequest."""
    if depth > MAX_DEPTH:
        raise InvalidRequest("chat", f"messages and tools may be nested {MAX_DEPTH} deep, these are deeper")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {plain(k, depth + 1): plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v, depth + 1) for v in value]
    for kind in (str, int, float):
        if isinstance(value, kind):  # enums and the like
            return kind(kind.__str__(value)) if kind is str else kind(value)
    raise InvalidRequest("chat", f"messages and tools should hold JSON values, got `{type(value).__name__}`")


def _raise_exception(message: object) -> None:
    import jinja2

    raise jinja2.exceptions.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    from datong.engine.template_budget import TemplateLimitError

    if len(form) > 200 or re.search(r"\d{3,}", form):  # glibc pads to a width
        raise TemplateLimitError("a date format with a width of 100 and more")
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
