"""Several packages in one server: loaded when asked, dropped when memory is short, never while in use."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CACHE_TOKENS = 4096


@pytest.fixture(scope="module")
def packages(package_template: Path, tmp_path_factory: pytest.TempPathFactory, checkpoint_template: Path) -> list[Path]:
    from datong.package.create import import_checkpoint

    found = [package_template]
    for name in ("second", "third"):
        source = Path(shutil.copytree(checkpoint_template, tmp_path_factory.mktemp("more") / name))
        found.append(import_checkpoint(source).root)
    return found


@pytest.fixture(scope="module")
def size(packages: list[Path]) -> int:
    """MiB of one model, rounded up."""
    import datong

    return -(-sum(datong.load(packages[0], threads=1, cache_tokens=CACHE_TOKENS).memory().values()) // (1 << 20))


def loaded(live: Any) -> list[str]:
    return [card["id"] for card in live.get("/v1/models").json()["data"] if card["loaded"]]


def ask(live: Any, model: str, **more: Any) -> Any:
    return live.post("/v1/completions", json={"model": model, "prompt": "Hello", "temperature": 0, **more})


def test_models_load_when_asked_and_go_when_memory_is_short(serve: Any, packages: list[Path], size: int) -> None:
    live = serve(*packages, "--memory-mb", 2 * size, "--cache-tokens", CACHE_TOKENS)
    assert live.get("/ready").json()["models"] == ["tiny", "second", "third"] and loaded(live) == ["tiny"]
    first = ask(live, "tiny").json()["choices"][0]["text"]
    assert ask(live, "second").json()["choices"][0]["text"] == first  # the same weights
    assert loaded(live) == ["tiny", "second"]
    assert ask(live, "tiny").status_code == 200
    assert ask(live, "third").json()["model"] == "third"
    assert loaded(live) == ["tiny", "third"], "the longest unused one has gone"
    assert ask(live, "second").status_code == 200 and loaded(live) == ["second", "third"]
    assert ask(live, "fourth").status_code == 404
    events = [line["event"] for line in live.lines if line["event"] in ("loaded", "unloaded")]
    assert events == ["loaded", "unloaded", "loaded", "unloaded", "loaded"]


def test_a_model_in_use_stays(serve: Any, packages: list[Path], size: int) -> None:
    live = serve(*packages[:2], "--memory-mb", size, "--cache-tokens", CACHE_TOKENS)
    body = {"model": "tiny", "prompt": "a", "max_tokens": 240, "ignore_eos": True, "stream": True, "n": 16}
    body["logprobs"] = 100  # more than the sockets hold: it cannot end before it is read
    with live.http.stream("POST", f"{live.url}/v1/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        refused = ask(live, "second")
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "memory_full"
    assert int(refused.headers["retry-after"]) > 0
    assert ask(live, "second").status_code == 200 and loaded(live) == ["second"]


def test_two_of_one_name_are_refused(cli: Any, package: Path) -> None:
    ended = cli("serve", package, package)
    assert ended.code == 2 and "two models are called `tiny`" in ended.err


def test_one_model_on_two_devices(serve: Callable[..., Any], package_template: Path) -> None:
    live = serve(package_template, f"{package_template}@reference")
    with live.client() as client:
        assert [model.id for model in client.models.list()] == ["tiny", "tiny@reference"]
        texts = [
            client.completions.create(model=name, prompt="a b", max_tokens=4, temperature=0).choices[0].text
            for name in ("tiny", "tiny@reference")
        ]
        cards = {model.id: model.model_extra for model in client.models.list()}
    assert texts[0] == texts[1]
    assert (cards["tiny"]["device"], cards["tiny@reference"]["device"]) == ("cpu", "reference")
