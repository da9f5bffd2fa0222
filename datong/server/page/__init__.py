"""The page at `/`: a chat for people, in plain modules that the browser gets from this server and nowhere else.

What is served is a table of the files that lay in `static/` at the start, one route each: a path in a request is looked
up, never opened. Markdown of a model is built with `createElement`; the policy in HEADERS makes the browser refuse
anything else: scripts of strangers, inline scripts, HTML from text (Trusted Types), and every other host.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# https://www.w3.org/TR/CSP3/ · https://www.w3.org/TR/trusted-types/
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # keep it, but ask each time: an update of the server is seen at once
    "Vary": "Accept-Encoding",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
HERE = "/page/"
SMALLEST = 1024  # bytes: less is not worth packing


@dataclass(frozen=True, slots=True)
class File:
    """One file; `packed` is gzip, or empty where that would not help."""

    data: bytes
    packed: bytes
    type: str
    tag: str


@cache
def table() -> Mapping[str, File]:
    """Path -> file; `/` is index.html."""
    found = _walk(files(__package__).joinpath("static"), HERE)
    found["/"] = found.pop(f"{HERE}index.html")
    return found


def _walk(folder: Traversable, path: str) -> dict[str, File]:
    found: dict[str, File] = {}
    for entry in folder.iterdir():
        suffix = entry.name[entry.name.rfind(".") :]
        if entry.is_dir():
            found |= _walk(entry, f"{path}{entry.name}/")
        elif suffix in TYPES:
            data = entry.read_bytes()
            packed = gzip.compress(data, 9, mtime=0) if len(data) >= SMALLEST else b""
            found[path + entry.name] = File(data, packed, TYPES[suffix], hashlib.sha256(data).hexdigest()[:32])
    return found


def routes() -> list[Route]:
    """One per file."""
    return [Route(path, partial(_answer, file)) for path, file in table().items()]


async def _answer(file: File, request: Request) -> Response:
    pack = bool(file.packed) and _takes_gzip(request.headers.get("accept-encoding", ""))
    tag = f'"{file.tag}{"-gzip" if pack else ""}"'  # other bytes, other tag: RFC 9110, 8.8.3.3
    headers = {**HEADERS, "ETag": tag}
    known = [one.strip().removeprefix("W/") for one in request.headers.get("if-none-match", "").split(",")]
    if tag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    if pack:
        headers["Content-Encoding"] = "gzip"
    return Response(file.packed if pack else file.data, headers=headers, media_type=file.type)


def _takes_gzip(accepted: str) -> bool:
    """RFC 9110, 12.5.3: `gzip;q=0` is a no."""
    for one in accepted.split(","):
        name, _, weight = one.replace(" ", "").partition(";q=")
        if name.lower() in ("gzip", "*"):
            return not weight or weight.strip("0.") != ""
    return False
