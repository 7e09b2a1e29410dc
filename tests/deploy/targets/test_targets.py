"""Targets: what `auto` takes, what a name finds, and what a plugin's target gets by its entry point alone."""

from __future__ import annotations

import pytest
import torch

import eqsat_extraction.cost_models.openvino as openvino_costs
from eqsat_deploy.doctor import doctor
from eqsat_deploy.errors import EngineError, InputError, RegistrationError, UnknownNameError
from eqsat_deploy.targets import TARGETS, auto, candidates, find_cost, find_engine, find_target, target_of
from eqsat_deploy.targets.tensorrt import device_option
from eqsat_extraction.cost_models import CostModelError, cost_models
from tests.support.targets import Register, register, target

__all__ = ["register"]


def test_built_in_targets_are_registered_with_cost_models_that_are_there() -> None:
    assert list(TARGETS.entries()) == ["onnxruntime", "onnxruntime-tensorrt", "openvino", "tensorrt"]
    for name in TARGETS.entries():
        assert set(find_target(name).cost_models) <= set(cost_models())


def test_auto_takes_the_first_by_rank_that_runs_here(register: Register) -> None:
    register(a=target("a", rank=2), b=target("b", rank=1, lacks="no such processor"), c=target("c", rank=3))
    assert auto().name == "a"
    assert find_engine() is auto().engine
    assert [candidate.name for candidate in candidates()] == ["b", "a", "c"]
    register(a=target("a"), b=target("b"))  # of one rank, by name
    assert auto().name == "a"


def test_the_order_of_preference_of_built_in_targets() -> None:
    preferred = ["tensorrt", "onnxruntime-tensorrt", "openvino", "onnxruntime"]
    assert [candidate.name for candidate in candidates()] == preferred


def test_a_target_of_a_plugin_joins_by_its_entry_point(register: Register) -> None:
    mine = target("mine", rank=1, cost_models=("kernels", "bytes"))
    register(mine=mine, other=target("other", rank=2))
    assert auto() is mine
    assert find_cost("auto").name == "kernels"
    assert target_of("bytes") is mine
    assert find_engine("mine") is mine.engine
    diagnosis = doctor()
    assert (diagnosis.engine, diagnosis.cost) == ("mine", "kernels")
    assert "engine mine" in {finding.name for finding in diagnosis.findings}


def test_a_plugin_that_fails_costs_itself_alone(register: Register) -> None:
    def explode(cls: type) -> str:
        raise OSError("libgone.so")

    register(
        fine=target("fine"),
        nowhere="no.such.module:TARGET",
        odd="builtins:dict",
        broken=target("broken", rank=1),
    )
    find_target("broken").engine.unavailable = classmethod(explode)  # type: ignore[assignment,method-assign]
    assert auto().name == "fine"
    lacks = {candidate.name: candidate.lacks for candidate in candidates()}
    assert lacks["fine"] is None
    assert "cannot be imported" in str(lacks["nowhere"])
    assert "it needs to be a Target" in str(lacks["odd"])
    assert "OSError: libgone.so" in str(lacks["broken"])


def test_an_engine_that_is_not_there_says_how_to_get_it(register: Register) -> None:
    register(tensorrt=target("tensorrt", lacks="no such processor; buy one"))
    with pytest.raises(EngineError, match="'tensorrt' is not available: no such processor; buy one"):
        find_engine("tensorrt")
    with pytest.raises(
        EngineError, match=r"no engine is available on this machine.*tensorrt: no such processor"
    ):
        find_engine()
    with pytest.raises(EngineError, match="tensorrt: no such processor"):
        find_cost("auto")
    with pytest.raises(UnknownNameError, match="unknown target 'tensort': did you mean 'tensorrt'"):
        find_engine("tensort")


def test_without_entry_points_the_error_says_to_install(register: Register) -> None:
    register()
    with pytest.raises(EngineError, match="pip install -e"):
        auto()


def test_an_entry_point_of_another_name_than_its_target_is_an_error(register: Register) -> None:
    register(mine=target("yours"))
    with pytest.raises(RegistrationError, match="target 'mine' has an engine called 'yours'"):
        find_target("mine")


def test_a_target_without_a_cost_model_is_refused() -> None:
    with pytest.raises(ValueError, match="names no cost model"):
        target("mine", cost_models=())


def test_a_cost_model_is_made_with_the_options_of_its_target(register: Register) -> None:
    register(gpu=target("gpu", cost_models=("trt_int8",), cost_options=lambda: {"device": "NVIDIA L4"}))
    assert find_cost("trt_int8").table.device == find_cost("auto").table.device != "A100"  # type: ignore[attr-defined]
    register()
    assert "A100" in find_cost("trt_int8").table.device  # type: ignore[attr-defined]


def test_cost_is_a_name_or_a_cost_model() -> None:
    model = find_cost("flops")
    assert find_cost(model) is model
    assert target_of("flops") is None
    with pytest.raises(UnknownNameError, match="did you mean 'flops'"):
        find_cost("flop")
    for wrong in (3, None, object(), type(model)):
        with pytest.raises(InputError, match=r"cost=.*needs the name of a cost model"):
            find_cost(wrong)  # type: ignore[arg-type]


def test_the_device_is_the_gpu_where_there_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_option() == {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert device_option() == {"device": "NVIDIA L4"}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4090")
    assert device_option() == {}


def test_integer_grids_are_what_the_kernels_read() -> None:
    grids = {
        name: (find_target(name).grid.unsigned, find_target(name).grid.asymmetric)
        for name in TARGETS.entries()
    }
    of_tensorrt = (False, False)
    assert grids == {"tensorrt": of_tensorrt, "onnxruntime-tensorrt": of_tensorrt, "openvino": (True, True),
                     "onnxruntime": (True, False)}  # fmt: skip
    assert find_target("tensorrt").float_dtype == torch.float16


@pytest.mark.parametrize(
    ("features", "table"),
    [
        ({"avx512_vnni", "amx_int8"}, "amx_int8"),
        ({"avx512_vnni", "avx2"}, "avx512_vnni"),
        ({"avx2"}, "avx2"),
        ({"avx2", "avx_vnni"}, openvino_costs.DEFAULT),
        ({"sse2"}, openvino_costs.DEFAULT),
    ],
)
def test_openvino_prices_for_the_instructions_of_the_machine(monkeypatch, features, table):
    monkeypatch.delenv("EQSAT_DEPLOY_CPU")
    monkeypatch.setattr("eqsat_deploy.processors.cpu", lambda: ("some CPU", features))
    assert find_cost("openvino_int8") == openvino_costs.openvino_int8(table)
    assert find_cost("openvino_fp32") == openvino_costs.openvino_fp32(table)


def test_openvino_prices_for_another_cpu_where_one_is_named(monkeypatch):
    monkeypatch.setenv("EQSAT_DEPLOY_CPU", "amx_int8")
    assert find_cost("openvino_int8") == openvino_costs.openvino_int8("amx_int8")
    monkeypatch.setenv("EQSAT_DEPLOY_CPU", "z80")
    with pytest.raises(CostModelError, match=r"z80.*there are amx_int8, avx512_vnni, avx2"):
        find_cost("openvino_int8")
