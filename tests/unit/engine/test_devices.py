import pytest

from datong.backends.reference.backend import ReferenceBackend
from datong.engine import devices
from datong.engine.devices import check_options, open_devices
from datong.errors import BackendMissing, InvalidRequest


class Chip(ReferenceBackend):
    def __init__(self, name: str, options=frozenset()) -> None:
        super().__init__()
        self.name, self.option_names = name, options


@pytest.fixture(autouse=True)
def three_chips(monkeypatch):
    known = {name: Chip(name.partition("=")[0]) for name in ("a", "b", "c", "a=again")} | {
        "reference": ReferenceBackend()
    }

    def backend_for(name):
        if name not in known:
            raise BackendMissing("device", f"no `{name}`")
        return known[name]

    monkeypatch.setattr(devices, "backend_for", backend_for)


def names(*args, **options):
    found = open_devices(*args, **options)
    return [b.name for b in found.backends], found.named, found.splits


def test_one_and_the_reference_behind_it():
    assert names("a") == (["a", "reference"], 1, ())
    assert names("a", strict=True) == (["a"], 1, ())
    assert names("reference") == (["reference"], 1, ())


def test_several_without_a_row():
    assert names("a, b") == (["a", "b", "reference"], 2, ())
    assert names("a,reference,b") == (["a", "reference", "b"], 3, ())


@pytest.mark.parametrize("split", [(10, 20), [10, 20], "10,20", " 10 , 20"])
def test_a_row(split):
    assert names("a,b,c", split, strict=True) == (["a", "b", "c"], 3, (10, 20))
    assert names("a,b", 15) == (["a", "b", "reference"], 2, (15,))


@pytest.mark.parametrize(
    ("device", "split", "text"),
    [
        ("a,,b", None, "names separated by commas were expected, got `a,,b`"),
        ("", None, "got ``"),
        ("a,a", None, "another backend, `a` comes twice in `a,a`"),
        ("a,a=again", 3, "`a` comes twice in `a,a=again`"),
        ("a", 3, r"one split is expected between each two devices, got 1 for 1 device"),
        ("a,b", (3, 4), "got 2 for 2 device"),
        ("a,b,c", "7", "got 1 for 3 device"),
        ("a,b", "x", "layer numbers separated by commas were expected, got `x`"),
        ("a,b", "", "got ``"),
        ("a,b,c", (9, 9), "splits should rise, got 9, 9"),
        ("a,b,c", "9,3", "splits should rise, got 9, 3"),
    ],
)
def test_what_is_no_row(device, split, text):
    with pytest.raises(InvalidRequest, match=text):
        open_devices(device, split)


def test_a_missing_one_is_the_registrys_error():
    with pytest.raises(BackendMissing, match="no `d`"):
        open_devices("a,d")


def test_an_option_must_be_known_to_one_of_the_named():
    pair = [Chip("a", frozenset({"isa"})), Chip("b", frozenset({"compute_dtype"}))]
    check_options({"isa": "ref", "compute_dtype": "bf16"}, pair)
    with pytest.raises(InvalidRequest, match="option `compute_dtype` is not known to `a`") as error:
        check_options({"compute_dtype": "bf16"}, pair[:1])
    assert error.value.hint == "options: isa"


def test_a_backend_that_lists_no_options_sees_them_all():
    check_options({"anything": 1}, [Chip("a"), Chip("b", None)])
