"""Whole models: the definition passes, a backend that is wrong or incomplete is shown."""

import pytest

from datong.backends import registry
from datong.backends.template import TemplateBackend
from datong.backends.template.kernels import KERNELS
from datong.conformance.models import MODELS, run_models


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DATONG_CACHE", str(tmp_path))


@pytest.fixture
def template(monkeypatch):
    """The template as an installed backend."""
    backend = TemplateBackend()
    found = registry.backend_for
    monkeypatch.setattr(
        "datong.engine.devices.backend_for", lambda name: backend if name == "template" else found(name)
    )


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_every_model_passes(device):
    results = list(run_models(device))
    assert [(r.model, r.state, r.reason) for r in results] == [(name, "passed", "") for name in MODELS]
    assert all(r.worst < 1e-4 and r.elsewhere == () for r in results)


def test_a_missing_operator_is_named(template, monkeypatch):
    monkeypatch.delitem(KERNELS, "glu")
    result = next(run_models("template"))
    assert result.state == "passed" and len(result.elsewhere) == 3
    assert result.elsewhere[0].startswith("glu ")


def test_a_wrong_kernel_fails(template, monkeypatch):
    right = KERNELS["rope"]
    monkeypatch.setitem(KERNELS, "rope", lambda x, cos, sin, **attrs: right(x, cos, -sin, **attrs))
    result = next(run_models("template"))
    assert result.state == "failed" and "a logit differs by" in result.reason


def test_an_error_of_the_backend_is_a_failure_with_its_text(template):
    result = next(run_models("template", {"context": 10_000}))
    assert result.state == "failed" and "context should be at most 256" in result.reason
