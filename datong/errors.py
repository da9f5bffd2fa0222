"""Every exception that Datong raises on purpose.

    DatongError                      exit code 2: the input or the request was wrong
    ├── ImportFailed                 a checkpoint could not become a package
    │   ├── UnknownModel             model_type (or GGUF architecture) has no builder
    │   ├── ConfigError              a config key is unknown, missing or contradictory
    │   ├── CheckpointError          a weight file or tensor is damaged, missing or left over
    │   └── TokenizerError           the tokenizer or the chat template is missing something
    ├── PackageError                 a package directory is not what it says it is
    │   ├── FormatVersionError       written by a newer Datong
    │   ├── IntegrityError           a hash, size, offset or golden vector does not match
    │   └── ContainmentError         a path or link leads out of the directory
    ├── CompileError                 a package could not become a program
    │   ├── Unsupported              the device refuses operators; `.reasons` lists them
    │   └── VerifyError              a graph broke a rule of the operator set (our bug, or a foreign graph)
    ├── BackendError                 the backend or its device failed
    │   ├── BackendMissing           no such backend or device here
    │   ├── AbiMismatch              plug-in speaks another major version
    │   ├── DeviceError              the backend reported an error while running
    │   │   └── RuleBroken           a program did what this chip does not allow; told by a simulated chip
    │   └── ChipError                a chip descriptor is not what chips/schema.py says
    ├── RuntimeFault                 a request could not be carried out
    │   ├── InvalidRequest           a parameter of the request is out of its range
    │   ├── OutOfBlocks              the KV cache is full
    │   ├── ContextOverflow          prompt plus answer do not fit the context
    │   ├── TemplateError            a chat template loops, or reaches for what it may not
    │   └── Cancelled                the caller gave up
    ├── ShapeError (ValueError)      an array has the wrong shape
    └── DtypeError (TypeError)       an array has the wrong element type

    FallbackWarning (UserWarning)    a model was loaded, and some operators run elsewhere than asked

The text of each is one sentence: `[where] what was wanted, what came`; the advice goes into `hint` and is printed
on its own line.
"""

from __future__ import annotations


class DatongError(Exception):
    """Base of all; `where` names the stage or file, `hint` says what to do about it."""

    def __init__(self, where: str, message: str, hint: str | None = None) -> None:
        self.where, self.message, self.hint = where, message, hint
        super().__init__(where, message, hint)

    def __str__(self) -> str:
        text = f"[{self.where}] {self.message}"
        return f"{text}\nhint: {self.hint}" if self.hint else text


class ImportFailed(DatongError):
    """A checkpoint could not become a package."""


class UnknownModel(ImportFailed):
    """No builder for this `model_type` or GGUF architecture."""


class ConfigError(ImportFailed):
    """A config key is unknown, missing or contradictory."""


class CheckpointError(ImportFailed):
    """A weight file or tensor is damaged, missing or left over."""


class TokenizerError(ImportFailed):
    """The tokenizer or chat template is missing something."""


class PackageError(DatongError):
    """A package directory is not what it says it is."""


class FormatVersionError(PackageError):
    """The package was written in a format version that this Datong does not read."""


class IntegrityError(PackageError):
    """A hash, size, offset or golden vector does not match."""


class ContainmentError(PackageError):
    """A path or link leads out of the package directory."""


class CompileError(DatongError):
    """A package could not become a program."""


class Unsupported(CompileError):
    """The device refuses operators; `reasons` holds one `(node name, reason)` per refusal."""

    def __init__(
        self, where: str, message: str, hint: str | None = None, reasons: list[tuple[str, str]] | None = None
    ) -> None:
        super().__init__(where, message, hint)
        self.reasons = reasons or []


class VerifyError(CompileError):
    """A graph broke a rule of the operator set."""


class BackendError(DatongError):
    """The backend or its device failed."""


class BackendMissing(BackendError):
    """No such backend or device here."""


class AbiMismatch(BackendError):
    """The plug-in speaks another major version of the backend interface."""


class DeviceError(BackendError):
    """The backend reported an error while running."""


class RuleBroken(DeviceError):
    """A program did what this chip does not allow; told by a simulated chip, with the source of the rule."""


class ChipError(BackendError):
    """A chip descriptor is not what chips/schema.py says."""


class RuntimeFault(DatongError):
    """A request could not be carried out."""


class InvalidRequest(RuntimeFault):
    """A parameter of the request is out of its range."""


class OutOfBlocks(RuntimeFault):
    """The KV cache is full."""


class ContextOverflow(RuntimeFault):
    """Prompt plus answer do not fit the context."""


class TemplateError(RuntimeFault):
    """A chat template loops, or reaches for what it may not."""


class Cancelled(RuntimeFault):
    """The caller gave up."""


class ShapeError(DatongError, ValueError):
    """An array has the wrong shape."""


class DtypeError(DatongError, TypeError):
    """An array has the wrong element type."""


class FallbackWarning(UserWarning):
    """Some operators run elsewhere than asked; `strict` refuses instead."""
