"""The worked example of FORMAT.md, byte by byte."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import safetensors.numpy

from datong.importer.safetensors import read_header
from datong.package import manifest

TEXT = (Path(manifest.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")


def test_the_example_is_true(tmp_path: Path) -> None:
    header = re.search(r"^ +00000008 +(\{.*\})$", TEXT, re.MULTILINE)
    entry = re.search(r"^ +\{\n +\"header_sha256\".*?\n +\}", TEXT, re.MULTILINE | re.DOTALL)
    assert header is not None and entry is not None
    head = (64).to_bytes(8, "little") + header[1].encode().ljust(64)
    path = tmp_path / "model.safetensors"
    path.write_bytes(head + np.arange(8, dtype="<f4").tobytes())
    assert head[0x41:] == b" " * 7 and len(head) == 0x48
    w = read_header(path).tensors["w"]
    assert (w.offset, w.length, w.shape) == (72, 32, (2, 4))
    assert np.array_equal(safetensors.numpy.load_file(path)["w"], np.arange(8).reshape(2, 4))
    listed = json.loads(entry[0])
    assert listed["size"] == path.stat().st_size
    assert listed["header_sha256"] == read_header(path).header_sha256
    assert listed["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_key_of_the_manifest_is_explained() -> None:
    table = TEXT[TEXT.index("## 2.") : TEXT.index("## 3.")]
    for key in manifest.Manifest.__struct_fields__:
        assert f"`{key}`" in table or f"`{key}[]`" in table, key
