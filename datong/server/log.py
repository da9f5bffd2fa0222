"""The log: one JSON object per line on stderr, without any text of prompts or answers unless asked."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

LOGGER = logging.getLogger("datong.server")


class JsonLines(logging.Formatter):
    """`{"time", "level", "event", …}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[1] is not None:
            fields["error"] = repr(record.exc_info[1])
            fields["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
        return json.dumps(fields, ensure_ascii=False, default=str)


def set_up() -> None:
    """Send our lines and uvicorn's to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name, level in (("datong.server", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log(event: str, **fields: Any) -> None:
    """One line."""
    LOGGER.info(event, extra={"fields": fields})


def log_exception(event: str, error: BaseException) -> None:
    """One line with the traceback."""
    LOGGER.error(event, exc_info=error)
