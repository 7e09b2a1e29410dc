"""The Dockerfile, as far as it can be told without Docker: what it copies, what it installs, what it runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from eqsat_deploy.cli.parser import parse

ROOT = Path(__file__).parents[3]
FILE = ROOT / "deploy" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Instructions and what follows them, lines that go on joined."""
    text = re.sub(r"\\\n\s*", "", FILE.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def each(steps: list[tuple[str, str]], word: str) -> list[str]:
    return [rest for found, rest in steps if found == word]


def test_it_copies_what_the_package_is_built_from(steps: list[tuple[str, str]]) -> None:
    copied = [source for rest in each(steps, "COPY") for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    ignored = (FILE.parent / "Dockerfile.dockerignore").read_text().split()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == set(copied)
    wanted = [
        name.partition("/")[0] for name in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    ]
    named = [PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], "pyproject.toml"]
    named = [name.partition("/")[0] for name in named]
    assert {*wanted, *named} == set(copied)


def test_it_installs_what_the_package_asks_for(steps: list[tuple[str, str]]) -> None:
    (installed, user) = each(steps, "RUN")
    (torch,) = (each for each in PROJECT["project"]["dependencies"] if each.startswith("torch"))
    assert f'"{torch}"' in installed
    (extra,) = (rest.partition("=")[2] for rest in each(steps, "ARG"))
    assert extra in PROJECT["project"]["optional-dependencies"]
    (image,) = each(steps, "FROM")
    assert (
        f"Programming Language :: Python :: {image.removeprefix('python:').removesuffix('-slim')}"
        in (PROJECT["project"]["classifiers"])
    )
    (number,) = each(steps, "USER")
    assert int(number) > 0
    assert f"useradd --uid {number} " in user


def test_it_serves(steps: list[tuple[str, str]]) -> None:
    words = [word for name in ("ENTRYPOINT", "CMD") for word in json.loads(each(steps, name)[0])]
    args = parse(words[1:])
    assert words[0] in PROJECT["project"]["scripts"]
    assert args.command == "serve"
    assert (args.host, args.artifacts, [str(args.port)]) == (
        "0.0.0.0",
        ["/models/model.eqsat"],
        each(steps, "EXPOSE"),
    )
    for option in re.findall(r"--[a-z-]+ \d", FILE.read_text().partition("FROM")[0]):
        assert parse([*words[1:], *option.split()])


class Ready(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/v2/health/ready" else 404)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_its_health_is_whether_the_server_is_ready(
    steps: list[tuple[str, str]], port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (check,) = each(steps, "HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] == "python"

    def healthy(where: int) -> bool:
        words = [sys.executable, *(word.replace(":8000/", f":{where}/") for word in command[1:])]
        return subprocess.run(words, capture_output=True).returncode == 0

    assert ":8000/" in command[-1]
    assert healthy(port)
    monkeypatch.setattr(Ready, "status", 503)
    assert not healthy(port)
    assert not healthy(1)
