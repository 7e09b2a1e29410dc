"""Whatever is passed, a public function takes what fits and answers anything else with an error of ours."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import eqsat_deploy as eqd
import eqsat_extraction
from eqsat_deploy import research
from eqsat_deploy.errors import EqsatError, InputError
from eqsat_deploy.explain import explain, inside
from eqsat_deploy.quantization import finetune, quantize, sensitivity
from eqsat_extraction import EGraph
from tests.support.models import image, randomized
from tests.support.stages import optimized

MODEL = randomized(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4)))
X = image(2, 4, 4, 4)
WRONG = st.one_of(
    st.integers(max_value=-1),
    st.text(alphabet="xyz?", min_size=1),
    st.booleans(),
    st.binary(min_size=1),
    st.just(float("nan")),
    st.builds(object),
    st.lists(st.integers(), min_size=1),
    st.dictionaries(st.text(), st.integers(), min_size=1),
    st.sampled_from([nn.Linear, torch.float32, print]),
)
ANYTHING = [
    -1, "xyz?", True, b"\x00", float("nan"), object(), [1, "a"], {"x": 1}, nn.Linear, torch.float32, print, 3, 0, None,
    (), X.double(), np.zeros((2, 2, 2)),
]  # fmt: skip
NUMBERS = (3,)
FROM_ZERO = (3, 0)
LIMIT = (3, 0, None)
PATH = ("xyz?",)


@pytest.mark.parametrize(
    "name", ["batch", "time_limit", "work_limit", "budget", "extractor", "rules", "seed", "buckets"]
)
@settings(max_examples=25, deadline=None)
@given(value=WRONG)
def test_optimize_names_the_argument(name: str, value: Any) -> None:
    if name == "rules" and isinstance(value, dict):
        return
    with pytest.raises(EqsatError, match=r"rule|time_limit|" + name):
        eqd.optimize(MODEL, X, cost="kernels", **{name: value})


class Made:
    """What public functions are called on, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.optimized = optimized(MODEL, X, cost="openvino_int8")
        self.teacher = randomized(nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)))
        self.batches = [image(2, 64, 32, 32)]
        self.quantized = optimized(self.teacher, self.batches[0], cost="openvino_int8").quantize(self.batches)
        self.engine = self.optimized.build(baseline=False)
        self.engine.save(folder / "artifact")
        self.search = research.explore(MODEL, X, cost="kernels")
        self.egraph = EGraph.build([(0, [1]), (0, [2]), (1, []), (2, [])], [0])
        self.costs = np.ones(4)

    def written(self, name: Any, suffix: str = "") -> Any:
        return self.folder / (name + suffix) if isinstance(name, str) else name


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Made(tmp_path_factory.mktemp("made"))


def optimizing(name: str) -> Callable[[Made, Any], Any]:
    return lambda made, v: eqd.optimize(MODEL, **{"example_inputs": X, "cost": "kernels", name: v})


def checking(name: str) -> Callable[[Made, Any], Any]:
    return lambda made, v: eqd.check_egraph(MODEL, **{"example_inputs": X, "rules": "pooling", name: v})


def quantizing(name: str) -> Callable[[Made, Any], Any]:
    return lambda made, v: quantize(made.optimized, [X], **{name: v})


def building(name: str) -> Callable[[Made, Any], Any]:
    return lambda made, v: made.optimized.build(**{"baseline": False, name: v})


def looking(name: str) -> Callable[[Made, Any], Any]:
    return lambda made, v: inside(made.search, **{"node": "1", "time_limit": 0.1, name: v})


def ordering(name: str) -> Callable[[Made, Any], Any]:
    return lambda made, v: research.compare_orderings(
        MODEL, X, **{"cost": "kernels", "strategies": "joint", "families": ["linear-to-convolution"], name: v}
    )


def extracting(function: Callable[..., Any], name: str, **more: Any) -> Callable[[Made, Any], Any]:
    vectors = function in (eqsat_extraction.extract_within, eqsat_extraction.pareto)

    def call(made: Made, value: Any) -> Any:
        costs = np.stack([made.costs] * 2, 1) if vectors else made.costs
        return function(**{"egraph": made.egraph, "costs": costs, **more, name: value})

    return call


# What each argument of a public function takes of `ANYTHING`; the rest is an error that is ours.
CALLS: dict[str, tuple[Callable[[Made, Any], Any], tuple[Any, ...]]] = {
    "optimize(model)": (lambda made, v: eqd.optimize(v, X, cost="kernels"), ()),
    "optimize(example_inputs)": (optimizing("example_inputs"), ()),
    "optimize(cost)": (optimizing("cost"), ()),
    "optimize(dynamic_shapes)": (optimizing("dynamic_shapes"), (None, ())),
    "check_egraph(model)": (lambda made, v: eqd.check_egraph(v, X), ()),
    "check_egraph(rules)": (checking("rules"), (None, ())),
    "check_egraph(tolerance)": (checking("tolerance"), FROM_ZERO),
    "check_egraph(budget)": (checking("budget"), (None,)),
    "check_egraph(seed)": (checking("seed"), FROM_ZERO),
    "Budget(seconds)": (lambda made, v: eqd.Budget(seconds=v), FROM_ZERO),
    "Budget(nodes)": (lambda made, v: eqd.Budget(nodes=v), NUMBERS),
    "quantize(module)": (lambda made, v: quantize(v, [X]), ()),
    "quantize(batches)": (lambda made, v: quantize(made.optimized, v), ()),
    "quantize([batch])": (lambda made, v: quantize(made.optimized, [v]), ()),
    "quantize(effort)": (quantizing("effort"), ()),
    "quantize(grid)": (quantizing("grid"), (None,)),
    "quantize(precision)": (quantizing("precision"), (None,)),
    "quantize(learnable)": (quantizing("learnable"), (True,)),
    "sensitivity(module)": (lambda made, v: sensitivity(v, made.batches), ()),
    "sensitivity(batches)": (lambda made, v: sensitivity(made.quantized, v), (None,)),
    "finetune(module)": (lambda made, v: finetune(v, made.teacher, made.batches), ()),
    "finetune(teacher)": (lambda made, v: finetune(made.quantized, v, made.batches), ()),
    "finetune(batches)": (lambda made, v: finetune(made.quantized, made.teacher, v), ()),
    "finetune(epochs)": (
        lambda made, v: finetune(made.quantized, made.teacher, made.batches, epochs=v),
        NUMBERS,
    ),
    "finetune(rate)": (lambda made, v: finetune(made.quantized, made.teacher, made.batches, rate=v), NUMBERS),
    "build(engine)": (building("engine"), ()),
    "build(batch)": (building("batch"), NUMBERS),
    "build(baseline)": (building("baseline"), (True,)),
    "build(options)": (building("options"), (None,)),
    "export(path)": (lambda made, v: made.optimized.export(made.written(v)), PATH),
    "export(target)": (lambda made, v: made.optimized.export(made.folder / "x.onnx", v), ()),
    "load(path)": (lambda made, v: eqd.load(v), ()),
    "load(engine)": (lambda made, v: eqd.load(made.folder / "artifact", v), (None,)),
    "save(path)": (lambda made, v: made.engine.save(made.written(v, "saved")), PATH),
    "engine(input)": (lambda made, v: made.engine(v), ()),
    "engine(input=)": (lambda made, v: made.engine(input=v), ()),
    "engine.warm": (lambda made, v: made.engine.warm(v), ((),)),
    "engine.warm([batch])": (lambda made, v: made.engine.warm([v]), (3, None)),
    "engine.benchmark(batch)": (lambda made, v: made.engine.benchmark(v, 0.01), (3, None)),
    "engine.benchmark(seconds)": (lambda made, v: made.engine.benchmark(None, v), (3, None)),
    "engine.compare(module)": (lambda made, v: made.engine.compare(v, [X]), ()),
    "engine.compare(batches)": (lambda made, v: made.engine.compare(MODEL, v), ()),
    "engine.profile": (lambda made, v: made.engine.profile(v), ()),
    "engine.layers": (lambda made, v: made.engine.layers(v), ()),
    "explain(model)": (lambda made, v: explain(v, X, cost="kernels"), ()),
    "explain(cost)": (lambda made, v: explain(MODEL, X, cost=v), ()),
    "inside(node)": (looking("node"), ()),
    "inside(limit)": (looking("limit"), FROM_ZERO),
    "inside(extractor)": (looking("extractor"), ()),
    "inside(time_limit)": (looking("time_limit"), (3, None)),
    "why_not(searched)": (lambda made, v: research.why_not(v, "batch-norm-is-affine", "1"), ()),
    "why_not(rule)": (lambda made, v: research.why_not(made.search, v, "1"), ()),
    "why_not(node)": (lambda made, v: research.why_not(made.search, "batch-norm-is-affine", v), ()),
    "compare_orderings(families)": (ordering("families"), (None,)),
    "compare_orderings(leave_out)": (ordering("leave_out"), ((),)),
    "compare_orderings(seeds)": (ordering("seeds"), (b"\x00",)),  # bytes are whole numbers
    "compare_orderings(seed)": (ordering("seed"), FROM_ZERO),
    "extract(egraph)": (extracting(eqsat_extraction.extract, "egraph"), ()),
    "extract(costs)": (extracting(eqsat_extraction.extract, "costs"), ()),
    "extract(extractor)": (extracting(eqsat_extraction.extract, "extractor"), ()),
    "extract(time_limit)": (extracting(eqsat_extraction.extract, "time_limit"), LIMIT),
    "extract(work_limit)": (extracting(eqsat_extraction.extract, "work_limit"), LIMIT),
    "extract(seed)": (extracting(eqsat_extraction.extract, "seed"), FROM_ZERO),
    "k_best(k)": (extracting(eqsat_extraction.k_best, "k"), NUMBERS),
    "k_best(diversity)": (extracting(eqsat_extraction.k_best, "diversity", k=2), (0,)),
    "extract_within(costs)": (extracting(eqsat_extraction.extract_within, "costs", limit=9.0), ()),
    "extract_within(limit)": (extracting(eqsat_extraction.extract_within, "limit"), NUMBERS),
    "pareto(points)": (extracting(eqsat_extraction.pareto, "points"), NUMBERS),
    "find_extractor(name)": (lambda made, v: eqsat_extraction.find_extractor(v), ()),
    "load_json(path)": (lambda made, v: eqsat_extraction.load_json(v), ()),
    "dump_json(path)": (
        lambda made, v: eqsat_extraction.dump_json(made.egraph, made.costs, made.written(v)),
        PATH,
    ),
    "totals(costs)": (
        lambda made, v: eqsat_extraction.totals(v, eqsat_extraction.extract(made.egraph, made.costs)),
        (),
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS)
def test_what_does_not_fit_is_an_error_of_ours(made: Made, call: str) -> None:
    function, fits = CALLS[call]
    for value in ANYTHING:
        if any(_same(value, known) for known in fits):
            function(made, value)
            continue
        with pytest.raises(EqsatError):
            pytest.fail(f"{call} takes {value!r}: {function(made, value)!r}")


def _same(value: Any, known: Any) -> bool:
    plain = not isinstance(value, Tensor | np.ndarray)
    return plain and type(value) is type(known) and bool(value == known)


def test_the_argument_is_named() -> None:
    with pytest.raises(InputError, match="parameter options=3"):
        optimized(MODEL, X).build(options=3)
    with pytest.raises(InputError, match="parameter grid='int8'"):
        quantize(optimized(MODEL, X), [X], grid="int8")
