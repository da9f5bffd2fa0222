"""`/v1/embeddings` through the official client, against the model itself (which tests/e2e/test_embeddings.py holds)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import datong
from datong.package.create import import_checkpoint

TEXTS = ["The quick brown fox", "Other", "jumps over the lazy dog, again and again"]


@pytest.fixture(scope="module")
def live(serve: Callable[..., Any], package_template: Path) -> Any:
    return serve(package_template, "--embeddings")


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[Any]:
    with live.client() as found:
        yield found


@pytest.fixture(scope="module")
def reader(package_template: Path) -> Any:
    return datong.load(package_template, threads=1, hidden=True)


def test_vectors_are_the_models(client: Any, reader: Any) -> None:
    want = reader.embed(TEXTS)
    for given in (
        {},
        {"encoding_format": "float"},
        {"encoding_format": "base64"},
    ):  # the client's own default is base64
        got = client.embeddings.create(model="tiny", input=TEXTS, **given)
        assert [one.index for one in got.data] == [0, 1, 2] and got.model == "tiny" and got.object == "list"
        vectors = [one.embedding for one in got.data]
        if given.get("encoding_format") == "base64":
            import base64

            vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in vectors]
        np.testing.assert_allclose(np.array(vectors), want, atol=1e-5)
        tokens = sum(len(reader.encode(text)) for text in TEXTS)
        assert (got.usage.prompt_tokens, got.usage.total_tokens) == (tokens, tokens)


def test_one_text_ids_and_lists_of_ids(client: Any, reader: Any) -> None:
    ids = [reader.encode(text) for text in TEXTS]
    want = reader.embed(TEXTS)
    for given, count in ((TEXTS[0], 1), (ids[0], 1), (ids, 3)):
        got = client.embeddings.create(model="tiny", input=given)
        np.testing.assert_allclose([one.embedding for one in got.data], want[:count], atol=1e-5)


def test_fewer_numbers_and_the_last_token(client: Any, reader: Any) -> None:
    got = client.embeddings.create(model="tiny", input=TEXTS, dimensions=5, extra_body={"pooling": "last"})
    np.testing.assert_allclose(
        [one.embedding for one in got.data], reader.embed(TEXTS, pooling="last", dimensions=5), atol=1e-5
    )
    assert np.linalg.norm(got.data[0].embedding) == pytest.approx(1, abs=1e-5)


def test_beside_answers_and_all_blocks_come_back(client: Any, live: Any, until_true: Callable[..., None]) -> None:
    text = "many words " * 20
    for _ in range(3):
        with client.completions.create(model="tiny", prompt="a", max_tokens=100, stream=True) as stream:
            next(iter(stream))
            vectors = [one.embedding for one in client.embeddings.create(model="tiny", input=[text] * 20).data]
            assert max(np.abs(np.array(vectors) - vectors[0]).max(axis=1)) < 1e-5
    until_true(lambda: live.metric("datong_requests_running") == 0)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["a", 3]}, "input"),
        ({"input": [[10**9]]}, "token ids"),
        ({"input": "word " * 5000}, "input"),
        ({"input": ["a"] * 1000}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 100000}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "pooling": "cls"}, "pooling"),
        ({"input": "a", "widgets": 1}, "widgets"),
    ],
)
def test_mistakes(live: Any, body: dict[str, Any], param: str) -> None:
    answer = live.post("/v1/embeddings", json={"model": "tiny", **body})
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error", error
    assert param in (error["param"] or "") or param in error["message"], error


def test_off_unless_asked_for(serve: Callable[..., Any], package_template: Path) -> None:
    with (
        serve(package_template).client() as client,
        pytest.raises(openai.BadRequestError, match="without --embeddings"),
    ):
        client.embeddings.create(model="tiny", input="a")


def test_pooling_comes_with_the_package(checkpoint_template: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(checkpoint_template, tmp_path / "source"))
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    package = import_checkpoint(source, tmp_path / "package")
    assert package.manifest.file("1_Pooling/config.json") and package.pooling() == "last"
    model = datong.load(package.root, threads=1, hidden=True)
    np.testing.assert_array_equal(model.embed("a b c"), model.embed("a b c", pooling="last"))
