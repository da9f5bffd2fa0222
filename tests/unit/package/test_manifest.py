"""datong.json: deterministic bytes, strict reading, a schema that is the truth."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datong.errors import ContainmentError, DatongError, FormatVersionError, PackageError
from datong.package import manifest as m
from datong.package.reader import Package

SCHEMA = Path(m.__file__).parents[1] / "spec" / "manifest_schema.json"


def as_json(package: Package) -> dict[str, Any]:
    return json.loads((package.root / m.NAME).read_bytes())


def decode(value: object) -> m.Manifest:
    return m.decode(json.dumps(value).encode(), "datong.json")


def test_bytes_are_sorted_indented_and_stable(package: Package) -> None:
    data = (package.root / m.NAME).read_bytes()
    assert m.encode(m.decode(data, "t")) == data
    assert data.endswith(b"}\n") and not data.endswith(b"\n\n")
    assert json.dumps(json.loads(data), sort_keys=True) == json.dumps(json.loads(data))
    assert b'\n  "context_length": 256,\n' in data


def test_the_schema_file_is_generated_from_the_structs() -> None:
    assert SCHEMA.read_bytes() == m.schema_bytes(), "run scripts/manifest-schema"


def test_an_independent_validator_agrees(package: Package) -> None:
    schema = json.loads(SCHEMA.read_bytes())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(as_json(package), schema)
    wrong = as_json(package)
    wrong["files"][0]["size"] = -1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


def test_a_newer_format_is_refused_before_anything_else() -> None:
    with pytest.raises(FormatVersionError, match=r"reads package format 1, the package has format 2") as e:
        decode({"format_version": 2, "new": []})
    assert e.value.hint is not None and "upgrade Datong" in e.value.hint


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "JSON object with `format_version`"),
        (b"[]", "expected `object`, got `array`"),
        (b"\xff\xfe", "JSON object with `format_version`"),
        (b"{}", "`format_version` is missing"),
        (b'{"format_version": "1"}', r"expected `int \| null`, got `str` - at `\$.format_version`"),
        (b'{"format_version": 1}', "object missing required field"),
        (b'{"format_version": 1, "x":' + b"[" * 100_000, "JSON object|does not follow"),
        (b'{"format_version": 1' + b" " * m.MAX_BYTES, "has at most"),
    ],
)
def test_what_is_no_manifest(data: bytes, text: str) -> None:
    with pytest.raises(PackageError, match=text):
        m.decode(data, "datong.json")


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("surprise",), 1, r"unknown field `surprise`"),
        (("model", "surprise"), 1, r"unknown field `surprise` - at `\$.model`"),
        (("files", 0, "size"), "9", r"expected `int`, got `str` - at `\$.files\[0\].size`"),
        (("files", 0, "size"), -1, r"`int` >= 0 - at `\$.files\[0\].size`"),
        (("files", 0, "size"), 2**70, r"at `\$.files\[0\].size`"),
        (("files", 0, "sha256"), "ABC", r"matching regex .* at `\$.files\[0\].sha256`"),
        (("files", 0, "kind"), "virus", r"invalid enum value 'virus' - at `\$.files\[0\].kind`"),
        (("files", 0, "header_sha256"), "0" * 64, "weights and only they have `header_sha256`"),
        (("files", 1, "path"), "other.onnx", "the files of kind `graph` should be `graph.onnx`"),
        (("sealed",), True, "a sealed package has a `sha256` for every file"),
        (("weights", "bytes"), 1, r"`\$.weights.bytes`, the sum over its formats"),
        (("weights", "parameters"), 1, "should be the sum over its formats"),
        (("caches", 0, "layer"), 1, "should name each layer once"),
        (("caches", 0, "window"), 5, "of kind `window` has a window"),
        (("memory", "cache"), [], "`\\$.memory.cache` should be the sum"),
        (("memory", "state_bytes"), 4, "`\\$.memory.state_bytes` should be the sum"),
        (("vocab_size",), 0, r"`int` >= 1 - at `\$.vocab_size`"),
        (
            ("goldens",),
            [{"ids": [1], "position": 1, "tokens": [1], "logits": [0.5], "backend": "x"}],
            r"`\$.goldens\[0\]` does not",
        ),
    ],
)
def test_each_wrong_field_is_named(package: Package, path: tuple[str | int, ...], value: object, text: str) -> None:
    data: Any = as_json(package)
    at = data
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(PackageError, match=text):
        decode(data)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a\\b", ""])
def test_files_outside_are_refused(package: Package, path: str) -> None:
    data = as_json(package)
    data["files"][0]["path"] = path
    with pytest.raises(ContainmentError):
        decode(data)


def test_a_file_is_listed_once(package: Package) -> None:
    data = as_json(package)
    data["files"].append(data["files"][0])
    with pytest.raises(PackageError, match=r"every file is listed once"):
        decode(data)


def test_cache_bytes_follow_the_formula(package: Package) -> None:
    caches = [
        m.CacheEntry(0, "full", 2, 16, 8, 0),
        m.CacheEntry(1, "window", 2, 16, 8, 10),
        m.CacheEntry(2, "full", 2, 16, 8, 0),
    ]
    uses = m.summarise(caches)
    assert uses == [m.CacheUse("full", 0, 2, 48), m.CacheUse("window", 10, 1, 48)]
    whole = msgspec.structs.replace(package.manifest, memory=m.Memory(0, uses, 0))
    assert whole.cache_bytes(4, 2) == (2 * 4 + 4) * 48 * 2
    assert whole.cache_bytes(100, 4) == (2 * 100 + 10) * 48 * 4


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found: list[tuple[Any, Any]] = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        found.append((value, key))
        found += places(inner)
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_mutation_is_read_or_refused_with_a_sentence(package: Package, data: st.DataObject) -> None:
    value = as_json(package)
    for _ in range(data.draw(st.integers(1, 3))):
        spots = places(value)
        container, key = spots[data.draw(st.integers(0, len(spots) - 1))]
        if data.draw(st.booleans()):
            container[key] = data.draw(JSON)
        else:
            del container[key]
    try:
        assert isinstance(decode(value), m.Manifest)
    except DatongError as e:
        assert e.message and "\n" not in e.message


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), cut=st.booleans())
def test_any_flipped_byte_is_read_or_refused(package: Package, at: int, byte: int, cut: bool) -> None:
    data = bytearray((package.root / m.NAME).read_bytes())
    at %= len(data)
    data[at] = byte
    try:
        m.decode(bytes(data[:at] if cut else data), "t")
    except DatongError as e:
        assert e.message
