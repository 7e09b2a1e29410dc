"""The doctor finds what is there, says what is missing, and what would be built."""

from __future__ import annotations

import json

import pytest
import torch
from rich.console import Console

from eqsat_deploy import doctor as home
from eqsat_deploy.doctor import Diagnosis, Finding, doctor
from tests.support.targets import Register, register, target

__all__ = ["register"]


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


def test_missing_engines_are_findings_and_make_the_machine_unhealthy(register: Register) -> None:
    register(openvino=target("openvino", lacks="not here: pip install absent"))
    diagnosis = doctor()
    finding = next(finding for finding in diagnosis.findings if finding.name == "engine openvino")
    assert (finding.state, finding.remedy) == ("missing", "not here: pip install absent")
    assert (diagnosis.engine, diagnosis.cost, diagnosis.healthy) == (None, None, False)
    register()
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
    monkeypatch.setattr(home, "cpu", lambda: ("Some CPU", flags))
    finding = home._cpu()
    assert finding.state == state
    assert words in finding.detail


def test_two_targets_of_one_name_are_a_finding(register: Register) -> None:
    register(openvino=target("openvino"), again=target("openvino"), names={"again": "openvino"})
    finding = next(f for f in doctor().findings if f.name == "engines")
    assert finding.state == "broken"
    assert "two targets are called 'openvino'" in finding.detail
