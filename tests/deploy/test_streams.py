"""Standard output carries results alone, whatever libraries print."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHATTY = """
import os, sys
from eqsat_deploy import cli

def chatter(*args):
    os.write(1, b"Running HiGHS\\n")
    print("a library says hello")
    return original(*args)

import eqsat_deploy.search
original, eqsat_deploy.search.search = eqsat_deploy.search.search, chatter
import eqsat_deploy.optimizer
eqsat_deploy.optimizer.search = chatter
sys.exit(cli.main(sys.argv[1:]))
"""
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
"""
MODEL = ("net.py:net", "--input", "2x3x8x8", "--cost", "kernels")
COMMANDS = [
    ("optimize", *MODEL), ("explain", *MODEL, "--node", "4"), ("rules", "folding"), ("doctor",),
    ("orderings", *MODEL, "--rules", "folding,identity-pool"),
    ("bench", *MODEL, "--float", "--seconds", "0.2"), ("optimize", "net.py:nothing"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "quiet"), [*((c, ()) for c in COMMANDS), (COMMANDS[0], ("--quiet",))],
    ids=[*map(" ".join, COMMANDS), "quiet"],
)  # fmt: skip
def test_all_of_standard_output_is_one_json_value(
    tmp_path: Path, arguments: tuple[str, ...], quiet: tuple[str, ...]
):
    (tmp_path / "net.py").write_text(NET)
    run = subprocess.run(
        [sys.executable, "-c", CHATTY, *arguments, "--json", *quiet], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    found = json.loads(run.stdout)
    assert ("error" in found) == (run.returncode != 0)
    if arguments[0] == "optimize" and run.returncode == 0:
        assert ("Running HiGHS" in run.stderr) == (not quiet)
