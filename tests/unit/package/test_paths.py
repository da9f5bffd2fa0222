"""Only plain relative paths, and only files inside the directory."""

from pathlib import Path

import pytest

from datong.errors import ContainmentError, IntegrityError
from datong.package.paths import check_relative, hub_sha256, resolve_inside

BAD = [
    "",
    "/etc/passwd",
    "..",
    "../x",
    "a/../x",
    "a/..",
    "./a",
    "a/./b",
    "a//b",
    "a/",
    "a\\b",
    "C:x",
    "a\0b",
    "a\nb",
    "x" * 600,
]


@pytest.mark.parametrize("path", BAD)
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(ContainmentError, match=r"plain path below the package directory"):
        check_relative(path, "test")


@pytest.mark.parametrize(
    "path", ["a", "a/b.txt", "模型.safetensors", "..a", "a..b/c", "-x", "model-00001-of-00002.safetensors"]
)
def test_paths_that_are_fine(path: str) -> None:
    check_relative(path, "test")


def test_links_inside_are_followed_and_links_outside_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "p"
    (root / "sub").mkdir(parents=True)
    (root / "real").write_text("x")
    (tmp_path / "secret").write_text("x")
    (root / "inside").symlink_to("real")
    (root / "outside").symlink_to("../secret")
    (root / "sub" / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    assert resolve_inside(root, "inside", "t") == (root / "real").resolve()
    for path in ("outside", "sub/up/secret"):
        with pytest.raises(ContainmentError, match=r"is a link that leaves the package directory"):
            resolve_inside(root, path, "t")
    for path, text in (("none", "is missing"), ("sub", "is not a regular file"), ("loop", "is missing")):
        with pytest.raises(IntegrityError, match=text):
            resolve_inside(root, path, "t")


def test_a_package_reached_through_a_link_is_no_escape(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a").write_text("x")
    (tmp_path / "alias").symlink_to("p")
    assert resolve_inside(tmp_path / "alias", "a", "t").name == "a"


def hub(tmp_path: Path) -> Path:
    snapshot = tmp_path / "models--o--n" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--o--n" / "blobs"
    blobs.mkdir()
    (blobs / ("0" * 64)).write_text("weights")
    (blobs / "1234").write_text("config")
    (snapshot / "model.safetensors").symlink_to("../../blobs/" + "0" * 64)
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    return snapshot


def test_links_of_a_hub_cache_lead_to_its_blobs_and_nowhere_else(tmp_path: Path) -> None:
    snapshot = hub(tmp_path)
    assert resolve_inside(snapshot, "config.json", "t").name == "1234"
    (tmp_path / "models--o--n" / "secret").write_text("x")
    (snapshot / "bad").symlink_to("../../secret")
    with pytest.raises(ContainmentError):
        resolve_inside(snapshot, "bad", "t")


def test_the_hub_names_large_files_by_their_hash(tmp_path: Path) -> None:
    snapshot = hub(tmp_path)
    assert hub_sha256(snapshot, "model.safetensors") == "0" * 64
    assert hub_sha256(snapshot, "config.json") is None
    assert hub_sha256(tmp_path, "x") is None
