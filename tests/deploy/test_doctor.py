"""The doctor finds what is there, says what is missing, and picks the cost model of the engine that would be built."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint

import pytest
import torch
from rich.console import Console

from eqsat_deploy import doctor as home
from eqsat_deploy.doctor import COST_MODELS, Diagnosis, Finding, auto_cost, doctor, roofline_device
from eqsat_deploy.engines.base import GROUP
from eqsat_deploy.errors import EngineError


class Ready:
    @classmethod
    def unavailable(cls) -> str | None:
        return None


class Absent:
    @classmethod
    def unavailable(cls) -> str | None:
        return "not here: pip install absent"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch):
    def register(**classes: str) -> None:
        entries = {
            name: EntryPoint(name, f"{__name__}:{kind}" if kind.isidentifier() else kind, GROUP)
            for name, kind in classes.items()
        }
        monkeypatch.setattr(home, "engines", lambda: entries)
        monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.value.rpartition(":")[2]])

    return register


def test_this_machine_is_described_and_serializable() -> None:
    diagnosis = doctor()
    names = [finding.name for finding in diagnosis.findings]
    assert {"torch", "egglog", "CPU", "GPU", "cost models"} <= set(names)
    assert json.loads(json.dumps(diagnosis.to_json()))["versions"]["torch"] == torch.__version__
    assert all(
        finding.remedy
        for finding in diagnosis.findings
        if finding.state != "ok" and finding.name != "cost models"
    )


def test_it_prints_findings_remedies_and_the_choice() -> None:
    diagnosis = Diagnosis((Finding("GPU", "missing", "no device", "[get] one"),), "openvino", "openvino_int8")
    console = Console(width=100)
    with console.capture() as capture:
        console.print(diagnosis)
    text = capture.get()
    assert all(word in text for word in ("missing", "no device", "[get] one", "openvino_int8"))


@pytest.mark.parametrize(
    ("engines", "expected"),
    [
        ({"tensorrt": "Ready", "openvino": "Ready"}, "trt_int8"),
        ({"onnxruntime": "Ready", "openvino": "Ready", "tensorrt": "Absent"}, "openvino_int8"),
        ({"onnxruntime": "Ready", "openvino": "Absent"}, "ort_int8"),
        ({"another": "Ready", "onnxruntime": "Ready"}, "ort_int8"),
        ({"tensorrt": "NoSuchClass", "onnxruntime": "Ready"}, "ort_int8"),
    ],
)
def test_auto_is_the_model_of_the_first_engine_that_runs_here(registered, engines, expected) -> None:
    registered(**engines)
    assert auto_cost() == expected


def test_without_an_engine_auto_says_what_each_lacks(registered) -> None:
    registered(openvino="Absent", another="Ready")
    with pytest.raises(EngineError, match=r"openvino: not here: pip install absent; another: no cost model"):
        auto_cost()
    registered()
    with pytest.raises(EngineError, match=r"pip install -e \."):
        auto_cost()


def test_missing_engines_are_findings_and_make_the_machine_unhealthy(registered) -> None:
    registered(openvino="Absent")
    diagnosis = doctor()
    finding = next(finding for finding in diagnosis.findings if finding.name == "engine openvino")
    assert (finding.state, finding.remedy) == ("missing", "not here: pip install absent")
    assert (diagnosis.engine, diagnosis.cost, diagnosis.healthy) == (None, None, False)
    registered()
    assert next(f for f in doctor().findings if f.name == "engines").state == "broken"


def test_a_wrong_version_is_broken_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "_version", lambda name: {"egglog": "12.0.0", "numpy": None}.get(name, "99.0"))
    monkeypatch.setattr(
        home, "requires", lambda name: ["egglog==13.2.*", "numpy>=1.26", 'onnx>=1.18; extra == "tensorrt"']
    )
    findings = {finding.name: finding for finding in home._packages()}
    assert findings["egglog"].detail == "12.0.0 is installed, egglog==13.2.* is needed"
    assert findings["egglog"].remedy == "pip install 'egglog==13.2.*'"
    assert (findings["numpy"].state, findings["numpy"].remedy) == ("broken", "pip install 'numpy>=1.26'")
    assert findings["rich"].state == "ok"


@pytest.mark.parametrize(
    ("flags", "state", "words"),
    [
        ({"avx512_vnni", "amx_int8"}, "ok", "AVX512-VNNI, AMX-INT8"),
        ({"asimddp"}, "ok", "dot product"),
        ({"avx2"}, "missing", "no INT8 instructions"),
    ],
)
def test_int8_instructions_are_named(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], state: str, words: str
) -> None:
    monkeypatch.setattr(home, "_cpu_flags", lambda: ("Some CPU", flags))
    finding = home._cpu()
    assert finding.state == state
    assert words in finding.detail


def test_the_roofline_device_is_the_gpu_where_there_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert roofline_device() is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    assert roofline_device() == "NVIDIA L4"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4090")
    assert roofline_device() is None


def test_every_cost_model_that_auto_can_name_is_registered() -> None:
    from eqsat_extraction.cost_models import cost_models

    assert set(COST_MODELS.values()) <= set(cost_models())
