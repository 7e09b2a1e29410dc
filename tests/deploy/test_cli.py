"""The command line: what it prints, what it leaves behind, and the exit code of every kind of failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from eqsat_deploy import cli, load
from eqsat_deploy.cli.output import notes
from eqsat_deploy.language import add
from eqsat_deploy.rules import Equation, Term, rule

MODEL = """
import torch
from torch import nn

class Data(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x

class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)
        x = torch.ones(2, 64)
        self.example_input_array = {"x": x, "pair": (x, x + 1), "scale": 2.0}

    def forward(self, x, *, pair, scale=1.0):
        return torch.relu(self.layer(x)) * scale + self.layer(pair[0]) * pair[1]

def named():
    return Named()

def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 4))

def data_dependent():
    return Data()

def broken():
    raise RuntimeError("no weights here")

def text():
    return "not a model"
"""
SEARCH = ("--input", "2x3x8x8", "--cost", "kernels")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failure(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and message, which standard error has as text and standard output as JSON."""
    code = cli.main([*arguments, "--json"])
    captured = capsys.readouterr()
    error = json.loads(captured.out)["error"]
    assert error["exit_code"] == code
    assert error["message"] in captured.err
    return code, error["message"]


def test_optimize_reports(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "models.py:net", *SEARCH, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["cost_model"] == "kernels"
    assert report["kernels"] <= report["plain_kernels"]
    assert max(report["errors"].values()) < 1e-4
    assert os.listdir(models) == ["models.py"] or not any(p.suffix == ".eqsat" for p in models.iterdir())


def test_optimize_measures_and_tunes(
    models: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQSAT_DEPLOY_CACHE", str(models / "cache"))
    monkeypatch.setattr("eqsat_deploy.tune.SECONDS", 1.0)
    words = ("--input", "2x3x8x8", "--cost", "measured:openvino_int8", "--tune", "2", "--json")
    assert cli.main(["optimize", "models.py:net", *words]) == 0
    found = json.loads(capfd.readouterr().out)  # and nothing else, whatever the libraries print
    assert found["cost_model"] == "measured:openvino_int8"
    assert found["tuning"]["winner"] in [row["form"] for row in found["tuning"]["forms"]]
    assert list((models / "cache" / "kernels").rglob("*.json"))


def test_optimize_prints_code_and_table(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["optimize", "models.py:net", *SEARCH, "--code", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert "def forward(self" in captured.out
    assert "batch-norm-is-affine" in captured.out
    assert captured.err == ""


def test_a_note_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with notes(quiet=False, debug=False):
        for message in ("one", "other", "one"):
            warnings.warn(message, stacklevel=1)
    assert capsys.readouterr().err.split() == ["note:", "one", "note:", "other"]


def test_optimize_saves_an_engine_that_loads(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("openvino")
    import eqsat_deploy as eqd

    np.savez(
        models / "data.npz", images=np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32)
    )
    arguments = [
        "--calibration",
        "data.npz",
        "--engine",
        "openvino",
        "--option",
        "mode=throughput",
        "--option",
        "streams=1",
        "--out",
        "net.eqsat",
        "--no-baseline",
        "--json",
    ]
    assert (
        cli.main(["optimize", "models.py:net", "--input", "2x3x8x8", "--cost", "openvino_int8", *arguments])
        == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["engine"]["name"] == "openvino"
    assert result["artifact"] == "net.eqsat"
    assert eqd.load("net.eqsat").options == {"mode": "throughput", "streams": 1}
    assert eqd.load("net.eqsat")(torch.zeros(2, 3, 8, 8)).shape == (2, 4)
    assert sorted(p.name for p in models.iterdir() if p.name[0] != "_") == [
        "data.npz",
        "models.py",
        "net.eqsat",
    ]


def test_explain_names_alternatives(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "models.py:net", *SEARCH, "--node", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(kernel["cost"] for kernel in found["kernels"]) == pytest.approx(found["cost"], rel=1e-3)
    (node,) = found["nodes"]
    (e_class,) = node["classes"]
    assert e_class["module"] == "5"
    assert {form["kernel"] for form in e_class["forms"]} >= {"linear", "reshape"}
    totals = [form["total"] for form in e_class["forms"] if form["total"] is not None]
    assert min(totals) == pytest.approx(found["cost"])


def test_orderings_of_several_models_as_json_csv_and_plots(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (models / "slow.toml").write_text('[[steps]]\nrun = ["folding"]\n')
    words = ["--strategies", "joint,mcts", "--seeds", "2", "--evaluations", "3", "--schedule", "slow.toml",
             "--sketch", "batch_norm", "--leave-out", "folding", "--csv", "o.csv", "--plot", "o.svg"]  # fmt: skip
    assert cli.main(["orderings", "models.py:net", "models.py:net", *SEARCH, *words, "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert first["families"] == second["families"]
    found = [(o["strategy"], o["seed"], o["without"]) for o in first["outcomes"]]
    once = [("joint", 0), ("mcts", 0), ("mcts", 1), ("slow", 0), ("sketches", 0)]
    assert found == [(*run, without) for without in (None, "folding") for run in once]
    costs = {o["strategy"]: o["cost"] for o in first["outcomes"] if o["without"] is None}
    assert costs["joint"] == min(costs.values()) < costs["sketches"]
    lines = (models / "o.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * (len(found) + 1)
    assert "<svg" in (models / "o-models.py-net.svg").read_text()
    code, message = failure(capsys, "orderings", "models.py:net", *SEARCH, "--strategies", "mtcs")
    assert code == 2
    assert "did you mean 'mcts'" in message


def test_rules_catalogue(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rules", "identity-pool", "--json"]) == 0
    catalogue = json.loads(capsys.readouterr().out)
    assert catalogue
    assert {rule["family"] for rule in catalogue} == {"identity-pool"}
    assert all(rule["doc"] for rule in catalogue)


def test_rules_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rules", "identity-pool", "kernel-anchors", "--check", "--json"]) == 0
    *checked, kernels = json.loads(capsys.readouterr().out)
    assert all(rule["ok"] and rule["samples"] == 8 and rule["checks"] for rule in checked)
    assert kernels["unchecked"]
    assert not kernels["checks"]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_unsound_rule_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    @rule("exact", x="n c")
    def doubled(x: Term) -> Equation:
        """Twice a tensor is the tensor."""
        return add(x, x), x

    monkeypatch.setattr("eqsat_deploy.selection.registered_rules", lambda: [doubled])
    assert cli.main(["rules", "--check", *options]) == 2
    said = capsys.readouterr()
    assert "1 of 1 rules are unsound: doubled" in said.err
    assert "sides" in said.out
    if options:
        (found,) = json.loads(said.out)
        assert not found["ok"]
        assert "differ" in found["failure"]


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json"])
    assert code == (0 if json.loads(capsys.readouterr().out)["healthy"] else 5)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("optimise", "models.py:net"), 2, "optimize"),
        (("optimize",), 2, "SPEC"),
        (("optimize", "models.py:net", "--calibraton", "x"), 2, "--calibration"),
        (("optimize", "models.py:net", "--batch", "0"), 2, "--batch"),
        (("optimize", "models.py:net", "--time-limit", "soon"), 2, "--time-limit"),
        (("optimize", "models.py:net", "--cost", "trt_int9"), 2, "'trt_int8'"),
        (("optimize", "models.py:net", *SEARCH, "--rules", "atention"), 2, "'attention'"),
        (("optimize", "models.py:net", *SEARCH, "--extractor", "gready"), 2, "'greedy'"),
        (("optimize", "models.py:nett", *SEARCH), 2, "'net'"),
        (("optimize", "model.py:net", *SEARCH), 2, "'models.py'"),
        (("optimize", "no_such_module:net", *SEARCH), 2, "no_such_module"),
        (("optimize", "resnet50", *SEARCH), 2, "torchvision:NAME"),
        (("optimize", "models.py:broken", *SEARCH), 2, "no weights here"),
        (("optimize", "models.py:text", *SEARCH), 2, "str"),
        (("optimize", "models.py:net", *SEARCH, "--weights", "none.pt"), 2, "none.pt"),
        (("optimize", "models.py:net", "--cost", "kernels", "--input", "2,3,8,8"), 2, "1x3x224x224"),
        (("optimize", "models.py:data_dependent", *SEARCH), 3, "models.py"),
        (("optimize", "models.py:net", *SEARCH, "--out", "net.eqsat"), 2, "--calibration"),
        (("optimize", "models.py:net", *SEARCH, "--float", "--engine", "openvno"), 2, "'openvino'"),
        (
            ("optimize", "models.py:net", *SEARCH, "--calibration", "random:8", "--observer", "minmix"),
            2,
            "'minmax'",
        ),
        (("optimize", "models.py:net", *SEARCH, "--calibration", "random:x"), 2, "random:N"),
        (("optimize", "models.py:net", *SEARCH, "--calibration", "none.npz"), 2, "none.npz"),
        (("optimize", "models.py:net", *SEARCH, "--float", "--out", "models.py"), 6, "models.py"),
        (("optimize", "models.py:net", *SEARCH, "--float", "--out", "none/net.eqsat"), 6, "none"),
        (("explain", "models.py:net", *SEARCH, "--node", "conv3d"), 2, "'conv2d'"),
        (("rules", "identity-pol"), 2, "'identity-pool'"),
    ],
)
def test_bad_input(
    models: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, says: str
) -> None:
    found, message = failure(capsys, *arguments)
    assert found == code, message
    assert says in message


def test_models_called_by_name_are_calibrated_and_timed(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = (
        "models.py:named",
        "--calibration",
        "random:8",
        "--cost",
        "openvino_int8",
        "--engine",
        "openvino",
        "--json",
    )
    assert cli.main(["optimize", *one, "--out", "named.eqsat"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"]["shipped"] in ("plain", "chosen")
    x, pair = torch.ones(3, 64), (torch.ones(3, 64), torch.ones(3, 64))
    assert load("named.eqsat")(x, pair=pair, scale=2.0).shape == (3, 64)
    assert cli.main(["bench", *one, "--seconds", "0.1"]) == 0
    assert "torch eager" in json.loads(capsys.readouterr().out)["timings"]


def test_calibration_with_nan(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(models / "data.npy", np.full((4, 3, 8, 8), np.nan, dtype=np.float32))
    code, message = failure(capsys, "optimize", "models.py:net", *SEARCH, "--calibration", "data.npy")
    assert code == 2
    assert "NaN" in message


def test_interruption_leaves_nothing(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("eqsat_deploy.optimizer.verify", interrupted)
    code, message = failure(capsys, "optimize", "models.py:net", *SEARCH, "--float", "--out", "net.eqsat")
    assert code == 130
    assert "nothing was saved" in message
    assert not (models / "net.eqsat").exists()


def test_a_bug_is_called_one(
    models: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("eqsat_deploy.optimizer.verify", wrong)
    code, message = failure(capsys, "optimize", "models.py:net", *SEARCH)
    assert code == 1
    assert "ZeroDivisionError" in message


def test_help_lists_exit_codes_without_importing_torch() -> None:
    script = (
        "import sys; from eqsat_deploy.cli import main\n"
        "try: main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "130  interrupted" in done.stdout


def test_real_inputs_and_data_of_ones_own(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "data.py").write_text(
        "import torch\ndef batches():\n    for _ in range(3):\n        yield torch.randn(4, 3, 8, 8), torch.zeros(4)\n"
    )
    known = ("models.py:net", "--cost", "openvino_int8", "--inputs", "data.py:batches")
    assert cli.main(["optimize", *known, "--calibration", "data.py:batches", "--no-baseline", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine"]["name"]
    own = (
        "optimize",
        "models.py:net",
        "--cost",
        "openvino_int8",
        "--calibration",
        "data.py:batches",
        "--no-baseline",
    )
    assert cli.main([*own, "--out", "net.eqsat"]) == 0
    assert load("net.eqsat").signature.inputs[0].shape == (None, 3, 8, 8)
    assert cli.main([*own[:4], "--calibration", "random:8", "--input", "2x3x6x6", "--out", "net.eqsat"]) == 0
    assert load("net.eqsat").signature.inputs[0].shape == (None, 3, 6, 6)
    capsys.readouterr()
    code, message = failure(capsys, "optimize", *known, "--input", "2x3x8x8")
    assert (code, "not allowed with" in message) == (2, True)
    code, message = failure(
        capsys, "optimize", "models.py:net", "--cost", "flops", "--inputs", "data.py:batch"
    )
    assert (code, "'batches'" in message) == (2, True)


def test_a_folder_of_images_is_prepared_as_told(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    (models / "images").mkdir()
    image.new("RGB", (30, 20), (9, 99, 200)).save(models / "images" / "a.png")
    (models / "images" / "b.png").write_bytes(b"none")
    command = ("optimize", "models.py:net", "--cost", "flops", "--inputs", "images")
    assert "--image-size" in failure(capsys, *command, "--skip-bad")[1]
    told = ("--image-size", "8x8", "--mean", "0.5,0.5,0.5", "--std", "0.5")
    code, message = failure(capsys, *command, *told)
    assert code == 2
    assert "b.png cannot be read" in message
    assert cli.main([*command, *told, "--skip-bad", "--json"]) == 0
    assert "1 left out" in capsys.readouterr().err
    for wrong in (("--image-size", "8x8x8"), ("--mean", "red")):
        assert wrong[0] in failure(capsys, *command, *wrong)[1]


def test_what_stays_in_float_is_asked_for(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "wide.py").write_text(
        "import torch\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Sequential("
        "torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3), torch.nn.ReLU())\n"
    )
    known = ("optimize", "wide.py:net", "--input", "2x3x24x24", "--cost", "openvino_int8", "--no-baseline")
    data = ("--calibration", "random:8", "--quiet", "--json")

    def planned(*more: str) -> int:
        assert cli.main([*known, *data, *more]) == 0
        return int(json.loads(capsys.readouterr().out)["engine"]["expected_int8"])

    assert planned() > planned("--keep-float", "_2*") > 0
    assert planned("--accuracy-budget", "200") == 0
    code, message = failure(capsys, *known, *data, "--keep-float", "third")
    assert (code, "third" in message) == (2, True)
    assert failure(capsys, *known, *data, "--accuracy-budget", "much")[0] == 2
