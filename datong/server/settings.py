"""What the operator of a server may set. Flags, environment and a TOML file end here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds are float, sizes are bytes."""

    host: str = LOOPBACK
    port: int = 8000
    api_keys: Path | None = None  # file of hashes, see auth.py
    max_requests: int = 256  # answers at once, running and waiting; more get 429
    max_choices: int = 16  # `n` and `best_of`, prompts of one request times choices
    max_body: int = 8 * MIB
    body_seconds: float = 30.0  # for a whole body to arrive
    header_seconds: float = 10.0  # for the headers; also what an idle connection may wait for its first request
    timeout_s: float = 600.0  # the longest that one request may take, and what it gets when it asks for nothing
    drain_s: float = 120.0  # after SIGTERM, for running requests
    log_prompts: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
