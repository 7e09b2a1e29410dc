from __future__ import annotations

import warnings

import pytest
import torch

from eqsat_deploy.build import CHOSEN, DRAFT, PLAIN, build, is_quantized
from eqsat_deploy.deployment import Signature, deployment, record
from eqsat_deploy.engines import Batch, Engine, Layer
from eqsat_deploy.engines.race import Timing
from eqsat_deploy.errors import EngineError, UnknownNameError
from eqsat_deploy.noise import Fidelity
from tests.support.models import Residual, image, randomized
from tests.support.stages import optimized

BUILT: list[object] = []


class Eager(Engine):
    """Runs the module as it is, and says it computed in INT8 what it was asked to."""

    name = "eager"
    fails: tuple[str, ...] = ()
    fallbacks = ()

    @classmethod
    def unavailable(cls):
        return None

    @classmethod
    def build(cls, built, *, batch=None, options=None):
        BUILT.append(built)
        form = CHOSEN if built is BUILT[0] else PLAIN
        if form in cls.fails and not options:
            raise EngineError(f"cannot compile the {form} one")
        engine = cls(Signature.of(built, batch or Batch()))
        engine.module = built
        return engine

    def run(self, inputs, batch):
        with torch.no_grad():
            return torch.utils._pytree.tree_leaves(self.module(*inputs))

    def save_files(self, folder):
        raise NotImplementedError

    @classmethod
    def load_files(cls, folder, signature, options):
        raise NotImplementedError

    def layers(self, *inputs):
        kernels = deployment(self.module).placement.kernels
        return tuple(Layer(k.anchor, "kernel", k.precision, 1.0, k.nodes) for k in kernels)

    @property
    def device(self):
        return "here"

    @property
    def version(self):
        return "1"


class Halves:
    """A cost model by which INT8 always pays."""

    name, unit, float_dtype, int8 = "halves", "us", "float32", True

    def price(self, kernel):
        return 1.0 if kernel.inputs and kernel.inputs[0].dtype == "int8" else 2.0


@pytest.fixture
def result():
    BUILT.clear()
    Eager.fails = ()
    return optimized(randomized(Residual()), image(), cost=Halves())


@pytest.fixture
def quantized(result):
    return result.quantize([image(4, 3, 8, 8)])


@pytest.mark.parametrize("faster", [CHOSEN, PLAIN])
def test_the_faster_form_is_shipped(quantized, monkeypatch, faster):
    # The median of one that is out early is of other rounds than the winner's: it is no measure.
    times = {name: Timing(2.0, 2.0, 2.0, 8, (1.1, 1.2, 1.3)) for name in (CHOSEN, PLAIN)}
    times[faster] = Timing(2.5, 2.5, 2.5, 16)
    monkeypatch.setattr("eqsat_deploy.build.race", lambda *_, **__: times)
    engine = build(quantized, Eager)
    assert engine.report["engine"]["shipped"] == faster
    assert (engine.module is quantized) == (faster == CHOSEN)
    assert engine.report["engine"]["latency"] == {CHOSEN: times[CHOSEN].median, PLAIN: times[PLAIN].median}


def test_the_plain_form_is_shipped_where_it_is_faster_for_certain_and_once_it_is_repaired(
    quantized, monkeypatch
):
    won, doubtful = Timing(2.0, 2.0, 2.0, 16), Timing(2.1, 2.1, 2.1, 16, (0.99, 1.01, 1.02))
    lost = Timing(2.1, 2.1, 2.1, 16, (1.01, 1.02, 1.05))
    races, handicapped = [], []

    def race(engines, *_, handicaps=None, **__):
        handicapped.append(handicaps)
        races.append([engine.module for engine in engines.values()])
        return results[len(races) - 1]

    monkeypatch.setattr("eqsat_deploy.build.race", race)
    results = [{CHOSEN: doubtful, PLAIN: won}]
    assert build(quantized, Eager).report["engine"]["shipped"] == CHOSEN
    assert len(races) == 1
    races.clear()
    results = [{CHOSEN: lost, PLAIN: won}, {CHOSEN: won, PLAIN: lost}]
    engine = build(quantized, Eager)
    assert engine.report["engine"]["shipped"] == CHOSEN
    draft, repaired = (raced[1] for raced in races)
    assert deployment(draft).draft is not None
    assert deployment(repaired).draft is None
    assert handicapped == [{PLAIN: 1 + DRAFT}, {PLAIN: 1 + DRAFT}, None]


def test_realized_precision_is_compared_with_what_was_placed(quantized):
    engine = build(quantized, Eager, baseline=False)
    found = engine.report["engine"]
    assert found["expected_int8"] > 0
    assert found["realized_int8"] == found["expected_int8"]
    assert found["not_realized"] == []


def test_without_baseline_the_chosen_form_alone_is_built(quantized):
    build(quantized, Eager, baseline=False)
    assert len(BUILT) == 1


def test_a_plain_form_that_does_not_build_costs_the_comparison_only(quantized):
    Eager.fails = (PLAIN,)
    with pytest.warns(UserWarning, match="plain form could not be built"):
        engine = build(quantized, Eager)
    assert engine.report["engine"]["shipped"] == CHOSEN


def test_a_chosen_form_that_does_not_build_leaves_the_plain_one_and_the_report_says_why(quantized):
    Eager.fails = (CHOSEN,)
    found = build(quantized, Eager).report["engine"]
    assert found["shipped"] == PLAIN
    assert "chosen: does not compile: cannot compile the chosen one" in found["notes"]


def test_a_form_that_does_not_build_is_built_in_the_other_ways_of_the_engine(quantized, monkeypatch):
    Eager.fails = (CHOSEN,)
    monkeypatch.setattr(Eager, "fallbacks", ({"slow": True},))
    found = build(quantized, Eager, baseline=False).report["engine"]
    assert found["shipped"] == CHOSEN
    assert found["notes"][0].startswith("chosen: does not compile")
    assert found["notes"][1].startswith("chosen with slow=True: agrees")


def test_nothing_that_builds_is_an_error(quantized):
    Eager.fails = (CHOSEN, PLAIN)
    with pytest.warns(UserWarning, match="plain form"), pytest.raises(EngineError, match="the chosen one"):
        build(quantized, Eager)


def test_an_unquantized_module_builds_in_float_with_a_warning(result):
    assert not is_quantized(result)
    with pytest.warns(UserWarning, match="not quantized"):
        engine = build(result, Eager, baseline=False)
    assert engine.report["engine"]["expected_int8"] == 0


def test_unknown_engines_name_near_misses(result):
    with pytest.raises(UnknownNameError, match="did you mean 'openvino'"):
        build(result, "openvin")


def test_an_engine_that_loses_accuracy_is_warned_of_until_it_was_trained(quantized):
    record(quantized, fidelity=Fidelity(12.5, None, 0))
    with pytest.warns(UserWarning, match=r"12\.5 dB") as caught:
        engine = quantized.build(baseline=False)
    assert [w.filename for w in caught if "12.5 dB" in str(w.message)] == [__file__]
    assert any("12.5 dB" in note for note in engine.report["engine"]["notes"])
    with torch.no_grad():
        next(quantized.parameters()).add_(1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantized.build(baseline=False)
