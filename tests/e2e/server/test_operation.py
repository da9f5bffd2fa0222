"""TLS, limits of keys, prompts in the log, one file for everything: live."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

ASK = {"model": "tiny", "prompt": "The quick", "max_tokens": 5, "temperature": 0}


def test_tls(serve: Callable[..., Any], package_template: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    live = serve(package_template, "--tls-certificate", certificate, "--tls-key", key)
    assert live.url.startswith("https://")
    import ssl

    context = ssl.create_default_context(cafile=str(certificate))
    with httpx.Client(verify=context) as http:
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", http_client=http, max_retries=0)
        pieces = list(client.completions.create(**ASK, stream=True))
        assert "".join(p.choices[0].text for p in pieces if p.choices)
    with pytest.raises(httpx.ConnectError):  # nobody vouches for it
        httpx.get(f"{live.url}/health")


def test_limits_of_a_key(serve: Callable[..., Any], package_template: Path, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    lines = [f"sha256:{hashlib.sha256(key.encode()).hexdigest()} {rest}" for key, rest in
             (("sk-few", "few requests=2"), ("sk-short", "short tokens=3"), ("sk-free", "free"))]  # fmt: skip
    file.write_text("\n".join(lines))
    live = serve(package_template, "--api-keys", file)
    few, short, free = (live.client(api_key=f"sk-{name}") for name in ("few", "short", "free"))
    answer = few.completions.with_raw_response.create(**ASK)
    assert (
        answer.headers["x-ratelimit-limit-requests"] == "2" and answer.headers["x-ratelimit-remaining-requests"] == "1"
    )
    few.completions.create(**ASK)
    with pytest.raises(openai.RateLimitError) as caught:
        few.completions.create(**ASK)
    assert caught.value.code == "rate_limit_exceeded" and 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    assert few.models.list().data, "what costs nothing is not counted"
    short.completions.create(**ASK)
    with pytest.raises(openai.RateLimitError, match="3 tokens a minute"):
        short.completions.create(**ASK)
    for _ in range(4):
        free.completions.create(**ASK)


def test_prompts_are_logged_where_asked_and_only_there(
    serve: Callable[..., Any], live: Any, package_template: Path, until_true: Callable[..., None]
) -> None:
    asked = serve(package_template, "--log-prompts")
    for one in (asked, live):
        with one.client() as client:
            client.completions.create(**{**ASK, "prompt": "brown fox jumps"})
    until_true(lambda: any("prompts" in line for line in asked.lines))
    [line] = [line for line in asked.lines if "prompts" in line]
    assert "brown fox jumps" in line["prompts"][0] and len(line["answers"]) == 1
    until_true(lambda: any(line.get("path") == "/v1/completions" for line in live.lines))
    assert not [line for line in live.lines if "brown fox jumps" in str(line)]


def test_one_file_says_everything(serve: Callable[..., Any], package_template: Path, tmp_path: Path, cli: Any) -> None:
    """Which models, where and how they run, and the server's own settings; a flag counts more."""
    file = tmp_path / "server.toml"
    file.write_text(
        f"[server]\nmodels = ['{package_template}', '{package_template}@reference']\nname = 'first'\n"
        "context = 64\nspeculate = 'lookup'\npage = true\nembeddings = true\nmax_choices = 2\n"
    )
    live = serve("--config", file, "--no-page", env={"DATONG_SERVE_CONTEXT": "128"})
    with live.client() as client:
        cards = {model.id: model.model_extra for model in client.models.list()}
        assert list(cards) == ["first", "tiny@reference"] and cards["first"]["context_length"] == 128
        assert client.embeddings.create(model="first", input="a").data
        with pytest.raises(openai.BadRequestError, match="at most 2 answers"):
            client.completions.create(model="first", prompt="a", n=3)
    assert live.get("/").status_code == 404
    ended = cli("serve")
    assert ended.code == 2 and "at least one model was expected" in ended.err
