"""Extractors are found by entry point, whoever wrote them."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from eqsat_extraction import (
    EGraph,
    ExtractionError,
    Extractor,
    RegistrationError,
    UnknownNameError,
    extract,
    extractors,
    find_extractor,
    registry,
)
from eqsat_extraction.extractor import EXTRACTORS
from tests.extraction.strategies import random_problem

HERE = __name__
BUILT_IN = {name: f"eqsat_extraction.builtin:{name}" for name in ("auto", "greedy", "ilp", "local", "tree")}


class Mine:
    """What a third party writes."""

    name = "mine"
    optimal = "neither"

    def solutions(self, egraph, costs, *, time_limit, work_limit, seed):
        yield extract(egraph, costs, extractor=find_extractor("tree")).named("mine")


MADE = Mine()


@pytest.fixture
def register(monkeypatch):
    """Adds entry points, given as pairs of a name and a value, to the built-in extractors."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[Mine.__module__])

    def add(*pairs: tuple[str, str]) -> None:
        entries = [EntryPoint(*pair, EXTRACTORS.group) for pair in (*BUILT_IN.items(), *pairs)]
        others = registry.entry_points
        monkeypatch.setattr(
            registry,
            "entry_points",
            lambda group: entries if group == EXTRACTORS.group else others(group=group),
        )

    return add


@pytest.mark.parametrize("made", [":Mine", ":MADE"])
def test_a_declaration_is_all_it_takes(register, made):
    register(("mine", HERE + made))
    assert list(extractors()) == sorted([*BUILT_IN, "mine"])
    egraph, costs = random_problem(1, 20)
    assert extract(egraph, costs, extractor="mine").extractor == "mine"


def test_the_product_uses_it_by_name(register):
    torch = pytest.importorskip("torch")
    from eqsat_deploy import optimize

    register(("mine", f"{HERE}:Mine"))
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()
    assert optimize(model, torch.randn(2, 4), cost="flops", extractor="mine").report.extractor == "mine"


def test_an_object_serves_without_a_name():
    egraph, costs = random_problem(1, 20)
    assert extract(egraph, costs, extractor=MADE).extractor == "mine"


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_extractors_register_like_any_other(register, name):
    register()
    found = find_extractor(name)
    assert isinstance(found, Extractor)
    assert found.name == name


def test_mistakes_are_named(register, monkeypatch):
    register(("tree", f"{HERE}:Mine"))
    with pytest.raises(RegistrationError, match=f"'tree': {BUILT_IN['tree']} and {HERE}:Mine"):
        extractors()
    register(("odd", "builtins:dict"))
    with pytest.raises(RegistrationError, match=r"'odd' .* is a dict: it needs name"):
        find_extractor("odd")
    with pytest.raises(UnknownNameError, match="unknown extractor 'gredy': did you mean 'greedy'"):
        find_extractor("gredy")
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    with pytest.raises(RegistrationError, match="pip install"):
        find_extractor("auto")


def test_without_or_tools_the_extra_is_named(monkeypatch):
    for module in ("ortools", "ortools.sat", "ortools.sat.python"):
        monkeypatch.setitem(sys.modules, module, None)
    from eqsat_extraction.cpsat import cpsat

    with pytest.raises(ExtractionError, match=r"eqsat-deploy\[cpsat\]"):
        extract(EGraph.build([(0, [])], [0]), [1.0], extractor=cpsat)


def test_what_is_installed_meanwhile_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    assert not list(registry.entry_points(group="somebody.group"))
    package = tmp_path / "somebody-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Name: somebody\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[somebody.group]\nmine = somewhere:MINE\n")
    assert [entry.value for entry in registry.entry_points(group="somebody.group")] == ["somewhere:MINE"]
