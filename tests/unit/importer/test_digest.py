import hashlib
from types import SimpleNamespace

import pytest

from datong.importer import digest


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 5000])
def test_it_is_sha256(data):
    assert digest.sha256(data) == hashlib.sha256(data).hexdigest()


def test_hashlib_serves_where_python_has_no_code_of_its_own(monkeypatch):
    def without(name):
        if name != "hashlib":
            raise ImportError(name)
        return SimpleNamespace(sha256=lambda data: "hashlib's")

    monkeypatch.setattr(digest, "import_module", without)
    assert digest._find()(b"") == "hashlib's"
