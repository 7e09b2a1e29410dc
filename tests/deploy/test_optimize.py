"""`optimize` from end to end, on models that fit in a test."""

from __future__ import annotations

import copy
import itertools
import json
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.export import Dim

import eqsat_deploy
from eqsat_deploy.errors import CaptureError, EqsatError, InputError, UnknownNameError, VerificationError
from eqsat_deploy.language import relu
from eqsat_deploy.noise import decibels
from eqsat_deploy.rules import rule
from eqsat_deploy.saturate import Budget
from eqsat_deploy.search import PATIENCE, QUICK, WORK, Limits, explore
from eqsat_deploy.selection import find_rules, registered_rules
from eqsat_deploy.stages import listening
from eqsat_extraction import Solution, extract
from tests.support.models import Residual, Several, Transformer, Unexportable, image, randomized
from tests.support.stages import assert_same, called, optimized, outputs


def fingerprint(model: nn.Module) -> dict[str, object]:
    return {
        "types": [type(m) for m in model.modules()],
        "training": [m.training for m in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "state": {k: (v.data_ptr(), v.sum().item()) for k, v in model.state_dict().items()},
        "grad": [p.requires_grad for p in model.parameters()],
        "keys": [sorted(vars(m)) for m in model.modules()],
    }


@pytest.mark.parametrize("make", [Residual, Transformer])
def test_the_model_is_left_as_it_was(make):
    model = randomized(make()).train()
    model.head.register_forward_hook(lambda *_: None)
    model.head.weight.requires_grad_(False)
    before = fingerprint(model)
    with pytest.warns(UserWarning, match="training mode"):
        result = eqsat_deploy.optimize(model, image(), cost="trt_int8")
    assert fingerprint(model) == before
    assert not result.training
    with torch.no_grad():
        result.get_parameter("head.weight").zero_()
    assert fingerprint(model) == before


def test_training_mode_is_optimized_as_eval():
    model = randomized(Residual())
    result = optimized(copy.deepcopy(model).train(), image())
    assert_same(model, result, image(3, 3, 8, 8))


@pytest.mark.parametrize(
    "cost",
    ["kernels", "flops", "bytes", "trt_int8", "trt_fp16", "openvino_int8", "openvino_fp32", "ort_int8"],
)
def test_every_cost_model_gives_the_same_function(cost):
    model = randomized(Transformer(depth=1))
    result = optimized(model, image(), cost=cost)
    assert result.report.cost_model == cost
    assert result.report.cost <= result.report.plain_cost * (1 + 1e-9)
    assert result.report.bound <= result.report.cost * (1 + 1e-9)
    assert_same(model, result, image(3, 3, 8, 8))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cost": "trt_int9"}, "did you mean 'trt_int8'"),
        ({"rules": ["foldin"]}, "did you mean 'folding'"),
        ({"rules": "identity-pools"}, "identity-pool"),
        ({"extractor": "greeedy"}, "greedy"),
    ],
)
def test_unknown_names_are_told_before_any_work(options, words):
    with pytest.raises(UnknownNameError, match=words):
        optimized(randomized(Unexportable()), image(2, 4), **options)


def test_conversions_alone():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool, self.linear = nn.AdaptiveAvgPool2d(4), nn.Linear(3 * 16, 5)

        def forward(self, x):
            return self.linear(torch.relu(torch.flatten(self.pool(x), 1)))

    model = randomized(Head())
    result = optimized(model, image(2, 3, 4, 4), rules="conversions")
    assert called(result) == ["Conv2d"]
    assert {"flatten-linear-as-convolution", "adaptive-pool-to-own-size"} <= set(result.report.used_rules())
    families = {r.family for r in result.report.rules if r.name != "unary-through-reshape"}
    assert families == {"linear-to-convolution", "identity-pool", "attention", "kernels", "quantization"}
    assert_same(model, result, image(3, 3, 4, 4))


def test_rules_by_family_name_and_object():
    by_name = find_rules(["folding", "reshape-of-reshape"]).rules
    assert {r.family for r in by_name} == {"folding", "movement", "kernels", "quantization"}
    own = next(r for r in registered_rules() if r.name == "reshape-to-own-shape")
    assert own in find_rules([own]).rules
    assert len(find_rules(None).rules) == len(registered_rules())
    with_own = find_rules(["all", own]).rules
    assert set(with_own) == set(registered_rules())
    assert with_own[-1] is own
    assert find_rules(["all", "conversions"]).forced == find_rules("conversions").forced != ()
    with pytest.raises(UnknownNameError):
        find_rules(["all", "no-such-rule"])


def test_a_wrong_rule_is_an_error_and_never_a_wrong_answer():
    @rule("real", x="n c", family="own")
    def vanishes(x):
        """relu(x) is x."""
        return relu(x), x

    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(VerificationError, match="check_egraph") as caught:
        optimized(randomized(model), image(2, 4), rules=[vanishes])
    assert any("verify" in note for note in caught.value.__notes__)
    unchecked = optimized(randomized(model), image(2, 4), rules=[vanishes], check=False)
    assert unchecked.report.errors == {}


def test_errors_say_in_which_stage_they_happened():
    with pytest.raises(CaptureError) as caught:
        optimized(randomized(Unexportable()), image(2, 4))
    assert caught.value.__notes__ == ["while in stage: capture"]


@pytest.mark.parametrize("example", [image(2, 4, 8, 8), image(2, 3), image().long(), (image(), image())])
def test_wrong_example_inputs_are_an_input_error(example):
    with pytest.raises(InputError, match="example_inputs"):
        optimized(randomized(Residual()), example)


def test_progress_is_told_by_stage():
    heard = []
    with listening(lambda stage, seconds: heard.append((stage, seconds is not None))):
        optimized(randomized(Residual()), image())
    stages = [stage for stage, ended in heard if ended]
    assert stages == [
        "capture",
        "lower",
        "saturate",
        "freeze",
        "price",
        "extract",
        "plain",
        "rebuild",
        "verify",
    ]


def test_the_report_has_what_it_promises():
    model = randomized(Transformer())
    report = optimized(model, image()).report
    assert report.model == "Transformer"
    assert report.nodes > 20
    assert report.opaque == []
    assert report.kernels > 0
    assert report.gap >= 0
    assert report.stopped == "saturated"
    assert set(report.errors) == {2, 3}
    assert max(report.errors.values()) <= report.tolerance == 1e-4
    assert set(report.seconds) >= {"capture", "saturate", "extract", "verify"}
    assert {r.name for r in report.rules} == {r.name for r in registered_rules()}
    used = {r.name: r for r in report.rules if r.used}
    assert "self-attention-in-three-parts" in used
    assert all(r.matches > 0 for r in used.values())
    assert json.loads(json.dumps(report.to_dict()))["model"] == "Transformer"
    assert "verified against the original" in str(report)
    assert "<pre" in report._repr_html_()


def test_a_budget_that_is_spent_is_reported_and_the_answer_is_right():
    model = randomized(Transformer())
    result = optimized(model, image(), budget=Budget(iterations=1))
    assert "iterations" in result.report.stopped
    assert_same(model, result, image(3, 3, 8, 8))


@pytest.mark.parametrize("extractor", ["greedy", "auto"])
def test_extractors_by_name(extractor):
    model = randomized(Residual())
    result = optimized(model, image(), extractor=extractor)
    assert_same(model, result, image(3, 3, 8, 8))


def test_a_busy_machine_chooses_what_an_idle_one_does(monkeypatch):
    model, start = randomized(Transformer()), time.monotonic()

    def busy(**limits):
        """Of a machine that does nothing else for 20 s as soon as an extraction has begun."""
        passed = itertools.chain([0.0], itertools.repeat(20.0))
        monkeypatch.setattr("eqsat_extraction._budget.monotonic", lambda: start + next(passed))
        return explore(model, image(), cost="trt_int8", **limits).solution

    idle = explore(model, image(), cost="trt_int8").solution
    assert idle.gap == busy().gap == 0.0
    assert busy().cost == idle.cost
    assert busy(time_limit=5.0).gap > 0.0


@pytest.mark.parametrize(
    ("given", "bounds"),
    [
        ({}, (PATIENCE, WORK)),
        ({"time_limit": 5.0}, (5.0, None)),
        ({"work_limit": 7}, (None, 7)),
        ({"time_limit": 5.0, "work_limit": 7}, (5.0, 7)),
    ],
)
def test_what_is_given_bounds_an_extraction_alone(given, bounds):
    limits = Limits(seed=3, **given)
    assert limits.bounds == {"time_limit": bounds[0], "work_limit": bounds[1], "seed": 3}
    within = limits.within(QUICK)
    assert within == (limits if given else Limits(seed=3, time_limit=PATIENCE, work_limit=QUICK))


def test_the_form_is_never_dearer_than_the_plain_one(monkeypatch):
    model = randomized(Residual())

    def poor(priced, limits):
        dearest = np.where(np.isfinite(priced.costs), 1 / (1 + priced.costs), np.inf)
        found = extract(priced.egraph, priced.costs if limits.extractor == "greedy" else dearest)
        return Solution.from_choice(priced.egraph, priced.costs, found.choice)

    monkeypatch.setattr("eqsat_deploy.search._extract", poor)
    result = optimized(model, image(), cost="trt_int8")
    assert result.report.cost == result.report.plain_cost
    assert any("time_limit=" in note for note in result.report.notes)
    assert {r.name for r in result.report.rules} == {r.name for r in registered_rules()}
    assert_same(model, result, image(3, 3, 8, 8))


def test_graph_modules_and_exported_programs_are_taken():
    model = randomized(Residual())
    program = torch.export.export(model, (image(),), dynamic_shapes=({0: Dim("batch")},))
    for form in (fx.symbolic_trace(model), program):
        assert_same(model, optimized(form, image()), image(5, 3, 8, 8))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)]
)
def test_parameters_of_other_precisions(dtype, tolerance):
    model = randomized(Residual()).to(dtype)
    result = optimized(model, image().to(dtype))
    assert {p.dtype for p in result.parameters()} == {dtype}
    assert_same(model, result, image(3, 3, 8, 8).to(dtype), tolerance=tolerance)


def test_a_pool_of_unknown_size_is_not_taken_for_the_identity():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.AdaptiveAvgPool2d(8)

        def forward(self, x):
            return self.pool(self.conv(x))

    model = randomized(Pooled())
    shapes = ({0: Dim("batch"), 2: Dim("height", min=4, max=64)},)
    with pytest.warns(UserWarning, match="adaptive_avg_pool2d"):
        result = eqsat_deploy.optimize(model, image(), cost="trt_int8", dynamic_shapes=shapes)
    assert_same(model, result, image(3, 3, 8, 8))
    assert_same(model, result, image(3, 3, 12, 8))
    fixed = optimized(model, image())
    assert "adaptive-pool-to-own-size" in fixed.report.used_rules()


def test_free_sizes_besides_the_batch_name_what_to_do():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):  # what is made of a shape alone reads a tensor whose shape is not known
            return torch.relu(self.layer(x)) + torch.ones_like(x)

    model = randomized(Masked())
    shapes = ({0: Dim("batch"), 1: Dim("sequence", max=64)},)
    with pytest.warns(
        UserWarning, match=r"input 'x' has free sizes besides the batch.*buckets= makes a form"
    ):
        result = eqsat_deploy.optimize(model, image(2, 6, 8), cost="flops", dynamic_shapes=shapes)
    assert_same(model, result, image(3, 9, 8))
    with pytest.raises(InputError, match=r"'x' has free sizes.*buckets=...\) makes an engine for each"):
        result.build("openvino")

    class Expanding(Masked):
        def forward(self, x):
            return super().forward(x) + torch.arange(8.0).expand(x.shape[0], 1, 8)

    with pytest.raises(InputError, match=r"dynamic_shapes: .*reads the size of the batch.*buckets="):
        eqsat_deploy.optimize(randomized(Expanding()), image(2, 6, 8), cost="flops", dynamic_shapes=shapes)


def test_keywords_and_dicts_come_through():
    model = randomized(Several())
    inputs = {"a": image(2, 4), "b": image(2, 3)}
    assert_same(model, optimized(model, inputs), a=image(5, 4), b=image(5, 3))


def test_a_quiet_model_gives_no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        eqsat_deploy.optimize(randomized(Residual()), image(), cost="trt_int8")


def test_public_names_are_there():
    for name in eqsat_deploy.__all__:
        assert getattr(eqsat_deploy, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        eqsat_deploy.nothing  # noqa: B018
    assert issubclass(eqsat_deploy.EqsatError, Exception)
    assert issubclass(UnknownNameError, EqsatError)


def test_a_verification_that_shows_little_says_so():
    model = randomized(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)))
    with torch.no_grad():
        model[0].bias += 1e7  # what is subtracted next: only rounding errors of float32 are left
        model[1].running_mean += 1e7
    (note,) = optimized(model, image(2, 6)).report.notes
    assert "optimize model.double()" in note
    assert not optimized(model.double(), image(2, 6).double()).report.notes


def test_calibration_and_a_budget_quantize_at_once():
    model = randomized(nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()))
    batches = [image(8, 3, 24, 24)]
    with pytest.raises(InputError, match="calibration="):
        eqsat_deploy.optimize(model, batches[0], cost="openvino_int8", accuracy_budget=30)
    quantized = optimized(model, batches[0], cost="openvino_int8", calibration=batches, accuracy_budget=30)
    expected, found = outputs(model, batches[0])[0], outputs(quantized, batches[0])[0]
    assert decibels(expected, found) >= 29


def test_importing_optimize_loads_nothing_that_only_running_it_needs() -> None:
    slow = {"black", "egglog", "highspy", "numba", "openvino", "pandas", "scipy", "sympy"}
    code = (
        "import sys, torch; before = set(sys.modules); from eqsat_deploy import optimize; "
        f"print(sorted({slow} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
