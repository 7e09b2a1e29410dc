"""The commands of saved engines, and data that they are tried on."""

from __future__ import annotations

import json
import math
import os
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from eqsat_deploy import cli, load
from eqsat_deploy.engines import Batch
from eqsat_deploy.errors import InputError
from eqsat_deploy.trial import trial
from tests.deploy.placing import traced
from tests.support.engines import Double, Fake

MODEL = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 4))
"""
COMMAND = [
    "optimize",
    "models.py:net",
    "--input",
    "2x3x8x8",
    "--cost",
    "openvino_int8",
    "--calibration",
    "data.npz",
]
COMMAND += ["--engine", "openvino", "--batch", "2", "--out", "net.eqsat", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("models")
    (path / "models.py").write_text(MODEL)
    np.savez(path / "data.npz", images=np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32))
    before = Path.cwd()
    os.chdir(path)
    try:
        assert cli.main(COMMAND) == 0
    finally:
        os.chdir(before)
    return path


@pytest.fixture
def artifact(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return Path("net.eqsat")


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert cli.main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_inspect_says_what_an_artifact_is(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = printed(capsys, "inspect", str(artifact))
    assert found["engine"] == "openvino"
    (given,) = found["inputs"]
    assert (given["shape"], given["dtype"]) == ([None, 3, 8, 8], "float32")
    assert found["batch"] == {"minimum": 1, "typical": 2, "maximum": None}
    assert found["shipped"] in ("plain", "chosen")
    assert found["command"] == shlex.join(["eqsat-deploy", *COMMAND])
    assert set(found["bytes"]) == {"engine/model.bin", "engine/model.xml"}
    assert cli.main(["inspect", str(artifact)]) == 0
    text = capsys.readouterr().out
    assert "2; from 1 to any" in text
    assert "all as saved" in text


def test_inspect_needs_no_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Fake.build(traced(Double(), torch.zeros(1, 3)), batch=Batch(1, 2, 8))
    engine.save(tmp_path / "model.eqsat")
    assert printed(capsys, "inspect", str(tmp_path / "model.eqsat"))["engine"] == "fake"
    (tmp_path / "model.eqsat" / "engine" / "program" / "code.txt").write_text("halved")
    error = printed(capsys, "inspect", str(tmp_path / "model.eqsat"), code=6)["error"]
    assert "code.txt is not what was saved" in error["message"]


def test_verify_compares_with_what_the_data_expects(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = load(artifact)
    (name,) = (spec.name for spec in engine.signature.inputs)
    x = torch.randn(5, 3, 8, 8)
    y = engine(x).numpy()
    np.savez("plain.npz", **{name: x.numpy()}, labels=np.zeros(5))
    np.savez("known.npz", **{name: x.numpy()}, output_0=y)
    np.savez("wrong.npz", **{name: x.numpy()}, output_0=y + 0.5 * np.abs(y).max())
    found = printed(capsys, "verify", str(artifact), "--data", "plain.npz", "known.npz")
    plain, known = found["data"]
    assert found["ok"]
    assert (plain["samples"], plain["outputs"][0]["decibels"], plain["outputs"][0]["finite"]) == (
        5,
        None,
        True,
    )
    assert known["outputs"][0]["decibels"] is None or known["outputs"][0]["decibels"] > 100
    found = printed(capsys, "verify", str(artifact), "--data", "known.npz", "wrong.npz", code=4)
    assert not found["ok"]
    assert found["data"][1]["outputs"][0]["decibels"] < 20
    assert cli.main(["verify", str(artifact), "--data", "wrong.npz", "--decibels", "0.001"]) == 0
    assert "wrong.npz: 5 samples; output_0 " in capsys.readouterr().out


def test_export_writes_a_file_and_the_command(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    words = ["export", "models.py:net", "--input", "2x3x8x8", "--calibration", "data.npz", "--batch", "4"]
    found = printed(capsys, *words, "--out", "net.onnx")
    assert found["files"] == ["net.onnx"]
    assert found["command"].startswith(
        "trtexec --onnx=net.onnx --saveEngine=net.plan --stronglyTyped --minShapes="
    )
    assert Path("net.onnx").stat().st_size > 1000
    assert cli.main([*words, "--out", "net.onnx", "--quiet"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("wrote net.onnx: ")
    assert f"  {found['command']}" in said
    found = printed(capsys, *words, "--out", "models/net", "--target", "openvino", "--triton")
    assert found["files"] == ["models/net/1/model.bin", "models/net/1/model.xml", "models/net/config.pbtxt"]
    assert found["command"] is None
    error = printed(capsys, *words, "--out", "net.onnx", "--target", "openvino", code=2)["error"]
    assert "reads no ONNX file" in error["message"]
    error = printed(capsys, *words, "--out", "nowhere/net.onnx", code=2)["error"]
    assert "there is no folder nowhere" in error["message"]
    error = printed(capsys, *words, "--out", "nowhere/models/net", "--triton", code=2)["error"]
    assert "there is no folder nowhere" in error["message"]
    error = printed(capsys, *words, "--out", "net.onnx", "--target", "tensort", code=2)["error"]
    assert "tensorrt" in error["message"]
    assert cli.main([*words[:4], "--float", "--out", "net.onnx", "--opset", "17"]) == 5
    said = capsys.readouterr()
    assert "opset 17: modules are written in 21 to " in said.err
    assert "capture" not in said.err  # told before anything runs


@pytest.fixture
def fake() -> Fake:
    return Fake.build(traced(Double(), torch.zeros(1, 3)), batch=Batch(1, 2, 8))


def test_a_trial_runs_every_sample_in_batches(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x, output_0=2 * x)
    sizes = []
    run = Fake.run
    monkeypatch.setattr(
        Fake, "run", lambda self, given, batch: sizes.append(batch) or run(self, given, batch)
    )
    found = trial(fake, tmp_path / "x.npz")
    assert sizes == [2, 2, 1]
    assert (found.samples, found.outputs[0].decibels, found.outputs[0].largest) == (5, math.inf, 0.0)
    x[4, 2] = np.nan
    np.savez(tmp_path / "x.npz", x=x)
    assert not trial(fake, tmp_path / "x.npz").outputs[0].holds(40)


def test_an_only_input_may_be_an_array_of_its_own(fake: Fake, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((5, 3), np.float32))
    assert trial(fake, tmp_path / "x.npy").samples == 5
    two = Fake.build(traced(nn.Bilinear(3, 3, 2), torch.zeros(1, 3), torch.zeros(1, 3)))
    with pytest.raises(InputError, match="is one array, the inputs are"):
        trial(two, tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"y": np.zeros((2, 3), np.float32)}, r"has \['y'\], but no array for the input 'x'"),
        ({"x": np.zeros((2, 4), np.float32)}, r"input 'x': shape \[batch, 3\]"),
        ({"x": np.zeros((0, 3), np.float32)}, "no samples"),
        ({"x": np.zeros((2, 3), np.int64)}, "'x': torch.float32 is expected, not torch.int64"),
        ({"x": np.array(["a"])}, "'x': can't convert np.ndarray of type numpy.str_"),
        ({"x": np.array([{}])}, "cannot be read"),
        ({"x": np.zeros((2, 3), np.float32), "output_0": np.zeros((2, 2))}, r"output_0 has shape \[2, 2\]"),
        (b"PK\x03\x04 torn", "cannot be read"),
        (b"", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_data_that_does_not_fit_is_said(fake: Fake, tmp_path: Path, arrays: Any, words: str) -> None:
    path = tmp_path / "x.npz"
    if isinstance(arrays, dict):
        np.savez(path, **arrays)
    elif arrays is not None:
        path.write_bytes(arrays)
    with pytest.raises(InputError, match=words):
        trial(fake, path)
