"""The page's files: a closed table, with tags, packed, under a strict policy; words and libraries are whole."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from datong.server import page
from datong.server.gate import OPEN
from datong.server.settings import load

ROOT = Path(__file__).resolve().parents[4]
STATIC = ROOT / "datong/server/page/static"
TEXT = {path.relative_to(STATIC).as_posix(): path.read_text(encoding="utf-8") for path in STATIC.rglob("*.*")}
OURS = {name: text for name, text in TEXT.items() if not name.startswith("vendor/")}


def get(path: str, **headers: str) -> httpx.Response:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(Starlette(routes=page.routes()))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.get(path, headers={"Accept-Encoding": "identity", **headers})

    return asyncio.run(ask())


def test_the_page_is_there() -> None:
    found = get("/")
    assert found.status_code == 200 and found.headers["content-type"] == "text/html; charset=utf-8"
    assert found.content == (STATIC / "index.html").read_bytes()


@pytest.mark.parametrize("path", page.table())
def test_every_file_has_policy_and_type(path: str) -> None:
    found = get(path)
    policy = found.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "require-trusted-types-for" in policy
    assert "unsafe" not in policy and "http" not in policy
    assert found.headers["x-content-type-options"] == "nosniff"
    assert path in OPEN  # without a key


def test_the_second_time_nothing_is_sent() -> None:
    first = get("/page/main.js")
    again = get("/page/main.js", **{"If-None-Match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert get("/page/main.js", **{"If-None-Match": '"other"'}).status_code == 200


def test_packed_for_who_takes_it() -> None:
    packed = get("/page/main.js", **{"Accept-Encoding": "br, gzip"})
    assert packed.headers["content-encoding"] == "gzip" and packed.content == TEXT["main.js"].encode()
    assert int(packed.headers["content-length"]) < len(packed.content)
    plain = get("/page/main.js", **{"Accept-Encoding": "gzip;q=0"})
    assert "content-encoding" not in plain.headers and plain.headers["etag"] != packed.headers["etag"]
    assert gzip.decompress(page.table()["/page/main.js"].packed) == plain.content


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/../__init__.py", "/page/%2e%2e/__init__.py", "/page/..%2f__init__.py", "/page//etc/passwd",
     "/page/vendor", "/page/vendor/marked.LICENSE", "/page/main.js%00", "/page/index.html"],
)  # fmt: skip
def test_nothing_else_can_be_asked_for(path: str) -> None:
    assert get(path).status_code == 404


def test_everything_comes_from_this_server() -> None:
    for name, text in OURS.items():
        for url in re.findall(r"""(?:src=|href=|from |import |url\()["']([^"']*)""", text):
            assert url.startswith(("/page/", "#")), f"{name}: {url}"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
    used = set(re.findall(r"/page/[\w./-]+", " ".join(OURS.values()))) - {"/page/i18n/"}
    assert used and used <= page.table().keys()


def test_both_languages_have_every_word_that_is_used() -> None:
    english, chinese = (json.loads(TEXT[f"i18n/{name}.json"]) for name in ("en", "zh"))
    assert english.keys() == chinese.keys()
    for name, words in english.items():
        assert set(re.findall(r"\{\w+\}", words)) == set(re.findall(r"\{\w+\}", chinese[name])), name
    used = set(re.findall(r'data-(?:t|label|placeholder)="(\w+)"', TEXT["index.html"]))
    for name, text in OURS.items():
        if name.endswith(".js"):
            used |= set(re.findall(r"""\bt\("([\w -]+)\"""", text)) | set(re.findall(r'button\("(\w+)"', text))
    assert len(used) > 40 and used <= english.keys()


def test_the_words_in_the_document_are_the_english_ones() -> None:
    english = json.loads(TEXT["i18n/en.json"])
    for name, words in re.findall(r'data-t="(\w+)"[^>]*>([^<]+)<', TEXT["index.html"]):
        assert words == english[name]


def test_libraries_are_what_the_record_says() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/vendor-page", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "marked" in done.stdout


def test_it_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load({}).page
    monkeypatch.setenv("DATONG_SERVE_PAGE", "false")
    assert not load({}).page
