"""The benchmark on a GPU: what of it needs none, with a stand-in for TensorRT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from benchmarks import tensorrt as benchmark
from benchmarks import tensorrt_files as files
from tests.deploy.engines.fake_tensorrt import Fake, install
from tests.deploy.placing import Residual

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fake:
    fake = Fake()
    monkeypatch.setattr(benchmark, "cuda", install(monkeypatch, fake))
    monkeypatch.setenv("EQSAT_DEPLOY_CACHE", str(tmp_path))
    monkeypatch.setattr(benchmark, "ROUNDS", 3)
    monkeypatch.setattr(benchmark, "JUDGED", 8)
    return fake


class Modelopt:
    """Stands for ModelOpt's ONNX quantization: checks what it is given, and writes the model as it is."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def quantize(self, onnx_path: str, **settings: Any) -> None:
        self.given = settings
        model = onnx.load(onnx_path)
        (name,) = [value.name for value in model.graph.input]
        data = settings["calibration_data"][name]
        fixed = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        assert data.shape[1:] == tuple(fixed[1:])
        assert len(data) % fixed[0] == 0
        onnx.save(model, settings["output_path"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_contestants_are_built_compared_and_timed(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Modelopt()
    monkeypatch.setitem(sys.modules, "modelopt", peer)
    monkeypatch.setitem(sys.modules, "modelopt.onnx", peer)
    monkeypatch.setitem(sys.modules, "modelopt.onnx.quantization", peer)
    torch.manual_seed(0)
    case = benchmark.Case(Residual(256), 8, side=64, calibrated=8, effort="fast")
    found = benchmark.compare(case, list(benchmark.CONTESTANTS), 0.1, 3, device="cpu")
    assert list(found) == ["plain fp16", "ours fp16", "ours", "modelopt"]
    assert not [row for row in found.values() if "failed" in row], found
    assert {row["over_ours"] for name, row in found.items() if name == "ours"} == {1.0}
    assert all(row["us"] > 0 and row["call us"] >= row["us"] for row in found.values())
    assert found["plain fp16"]["sqnr"] > 40
    assert found["modelopt"]["sqnr"] > 80
    assert found["ours fp16"]["sqnr"] > found["ours"]["sqnr"] > 15
    assert peer.given["quantize_mode"] == "int8"
    assert peer.given["high_precision_dtype"] == "fp16"
    lines = benchmark.table({"small, 8": found})
    assert len(lines) == 6
    assert all(line.count("|") == lines[0].count("|") for line in lines)


@pytest.mark.filterwarnings("ignore")
def test_what_fails_is_a_row_that_says_why(fake: Fake) -> None:
    case = benchmark.Case(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), 1, side=16, calibrated=4)
    found = benchmark.compare(case, ["plain fp16", "modelopt"], 0.05, 3, device="cpu")
    assert found["modelopt"] == {"failed": "ModuleNotFoundError: No module named 'modelopt'"}
    assert "over_ours" not in found["plain fp16"]
    rows = benchmark.table({"tiny, 1": found})
    assert "failed: ModuleNotFoundError" in rows[-1]
    fake.fail = {"build"}
    found = benchmark.compare(case, ["plain fp16"], 0.05, 3, device="cpu")
    assert "no implementation for node stem" in found["plain fp16"]["failed"]


def test_without_a_gpu_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.tensorrt"])
    with pytest.raises(SystemExit) as stopped:
        benchmark.main()
    assert stopped.value.code == 1
    assert "TensorRT is not available here: " in capsys.readouterr().err


def test_models_run_apart_and_figures_are_kept(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    asked: list[list[str]] = []

    def run(command: list[str], **rest: Any) -> Any:
        asked.append(command)
        if command[0] == "nvidia-smi":
            raise OSError
        name = command[command.index("--one") + 1]
        if name == "swin_t":
            return benchmark.subprocess.CompletedProcess(command, -11, "", "")
        return benchmark.subprocess.CompletedProcess(command, 0, 'noise\n{"ours": {"us": 1.5}}\n', "")

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    out = tmp_path / "out.json"
    for models in (["resnet50"], ["swin_t"]):
        monkeypatch.setattr(
            sys, "argv", ["x", "--models", *models, "--batch", "8", "--level", "1", "--json", str(out)]
        )
        benchmark.main()
    stored = json.loads(out.read_text())
    assert stored["results"] == {
        "resnet50, 8": {"ours": {"us": 1.5}},
        "swin_t, 8": {"all": {"failed": "exit status -11"}},
    }
    assert stored["versions"]["gpu"] == "NVIDIA Fake 3000"
    assert stored["versions"]["torch"]
    assert asked[0][-2:] == ["--level", "1"]
    assert "| resnet50, 8 | ours | 1.5 |" in capsys.readouterr().out


def test_files_become_plans_of_nvidias_builder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    file = tmp_path / "files.json"
    models = ["timm:test_resnet", "torchvision:no_such_model"]
    monkeypatch.setattr(sys, "argv", ["x", "--models", ",".join(models), "--side", "64", "--json", str(file)])
    assert files.main() == 1
    found = json.loads(file.read_text())["models"]
    assert set(found) == set(models)
    assert found[models[0]]["int8"]["plan_mb"] > 0
    assert "no_such_model" in found[models[1]]["failed"]
    assert capsys.readouterr().out.endswith(f"1 of 2 models became plans {models[1]}\n")
    monkeypatch.setattr(files, "answer", None)  # what is in the file is not done again
    assert files.main() == 1
