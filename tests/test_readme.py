"""What the README says, as it stands: its programs run, and its commands are ones that there are."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.pages import blocks, check_command, commands

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
BLOCKS = blocks(TEXT)
SHOWN = commands(TEXT)  # `make` has tests of its own, `pip` has been run.


class Net(nn.Module):
    """A reader's model."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(2, 3, 32, 32)
        block = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1))
        self.features = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), block)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))


def served() -> list[tuple[str, str]]:
    """The blocks from a model to a server: the file that is shown first, and what follows it until it is answered."""
    first = next(i for i, (_, code) in enumerate(BLOCKS) if code.startswith("# net.py"))
    return BLOCKS[first : first + 3]


def test_its_commands_are_parsed() -> None:
    assert len(SHOWN) >= 8
    for line in (*SHOWN, *re.findall(r"^(eqsat-deploy .*?)&?$", served()[1][1], re.MULTILINE)):
        check_command(line)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_its_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    batches = [torch.rand(16, 3, 32, 32) for _ in range(4)]
    known = {"model": Net().eval(), "x": batches[0], "batches": batches, "more_batches": batches}
    programs = [code for kind, code in BLOCKS if kind == "python" and code not in {c for _, c in served()}]
    assert len(programs) >= 2
    for code in programs:
        exec(compile(code, "README.md", "exec"), known)
    assert (tmp_path / "model.eqsat").is_dir()


def free(port: int) -> int:
    """`port`, or one that nobody listens at where somebody has that."""
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
def test_a_model_of_ones_own_becomes_a_server(tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.http")
    (_, file), (kind, commands), (_, client) = served()
    assert kind == "bash"
    (tmp_path / "net.py").write_text(file)
    (tmp_path / "client.py").write_text(client)
    port = free(8000)
    if port != 8000:
        commands = commands.replace("serve ", f"serve --port {port} ").replace(":8000", f":{port}")
        (tmp_path / "client.py").write_text(client.replace(":8000", f":{port}"))
    (tmp_path / "bin").mkdir()
    for name, words in (("eqsat-deploy", "-m eqsat_deploy "), ("python", "")):
        (tmp_path / "bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {words}"$@"\n')
        (tmp_path / "bin" / name).chmod(0o755)
    script = f"set -e\n{commands}\necho\npython client.py\nkill %1\nwait\n"
    path = os.pathsep.join((str(tmp_path / "bin"), os.environ["PATH"]))
    with subprocess.Popen(
        ["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PATH": path}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            said, _ = process.communicate(timeout=300)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, said
    assert '"name":"net"' in said
    report = json.loads((tmp_path / "net.eqsat" / "manifest.json").read_text())["report"]
    assert [layer["precision"] for layer in report["engine"]["layers"]].count("int8") >= 3
    *_, answer = re.findall(r"\[\[(.*?)\]\]", said, re.DOTALL)
    assert len(answer.split()) == 10
