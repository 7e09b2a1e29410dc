"""What CONTRIBUTING says of adding things, by a package that adds each of them in one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parent / "plugin"
SCRIPT = """
import json, sys, warnings
import torch
from torch import nn
import eqsat_deploy as eqd
from eqsat_deploy.deployment import deployment
from eqsat_deploy.language import OPERATORS
from eqsat_deploy.targets import auto

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)
    def forward(self, x):
        x = torch.relu(torch.special.i1e(-self.norm(self.conv(x))))
        return self.fc(x.mean((2, 3)))

torch.manual_seed(0)
net, x = Net().eval(), torch.randn(8, 3, 8, 8)
warnings.simplefilter("ignore")
optimized = eqd.optimize(net, x, cost="traffic", extractor="patient")
engine = optimized.quantize([x]).build("eager")
engine.save(sys.argv[1])
again = eqd.load(sys.argv[1])
y = engine(x)
print(json.dumps({
    "opaque": optimized.report.opaque, "extractor": optimized.report.extractor, "target": deployment(optimized).target,
    "rules": [r.name for r in optimized.report.rules if r.family == "rules"], "used": optimized.report.used_rules(),
    "int8": optimized.report.integer_kernels, "shipped": engine.report["engine"]["shipped"],
    "error": float((y - net(x)).abs().max() / net(x).abs().max()),
    "same": bool(torch.equal(again(x[:1]), engine(x[:1]))),
    "auto": auto().name, "bessel": "bessel" in OPERATORS,
}))
"""

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs Python with the plugin installed, in a folder of its own so that no other test meets it."""
    folder = tmp_path_factory.mktemp("installed")
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(folder),
        str(PLUGIN),
    ]
    subprocess.run(install, check=True, capture_output=True)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return call


@pytest.mark.slow
def test_each_thing_that_a_plugin_adds_is_used(run: Run, tmp_path: Path) -> None:
    found = json.loads(run("-c", SCRIPT, str(tmp_path / "net.eqsat")))
    assert found["opaque"] == []
    assert found["extractor"] == "patient"
    assert found["target"] == "eager"
    assert found["rules"] == ["bessel-is-odd", "relu-of-bessel"]
    assert set(found["used"]) & {"bessel-is-odd", "relu-of-bessel"}
    assert found["int8"] > 0
    assert found["error"] < 0.05
    assert found["same"]
    assert found["auto"] != "eager"  # which has the last rank


@pytest.mark.slow
def test_the_command_line_lists_and_checks_it(run: Run) -> None:
    rules = json.loads(run("-m", "eqsat_deploy", "rules", "relu-of-bessel", "bessel-is-odd", "--json"))
    assert {rule["name"] for rule in rules} == {"relu-of-bessel", "bessel-is-odd"}
    doctor = json.loads(run("-m", "eqsat_deploy", "doctor", "--json"))
    assert any("eager" in finding["name"] and finding["state"] == "ok" for finding in doctor["findings"])
    assert any(
        "traffic" in finding["detail"] for finding in doctor["findings"] if finding["name"] == "cost models"
    )


@pytest.mark.slow
def test_its_rules_are_checked_as_any_other(run: Run) -> None:
    checked = json.loads(
        run("-m", "eqsat_deploy", "rules", "--check", "relu-of-bessel", "bessel-is-odd", "--json")
    )
    assert len(checked) == 2
    assert all(row["ok"] for row in checked)
