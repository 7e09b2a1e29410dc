"""The server as a process, through a real client and through sockets that misbehave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from tritonclient.http import (
    InferenceServerClient,
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
)

import eqsat_deploy as eqd
from eqsat_deploy.engines.base import Engine

ROWS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.first(x))
        return self.second(hidden), hidden.sum(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Engine]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("served") / "two.eqd"
    engine = eqd.optimize(Two().eval(), (torch.zeros(1, 8),), cost="openvino_fp32").build("openvino")
    engine.save(folder)
    return folder, engine


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`eqsat-deploy serve` on a free port: the process, and where it listens."""
    command = [sys.executable, "-m", "eqsat_deploy", "serve", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, address(process)
        finally:
            process.kill()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if "running on" in line:
            where = json.loads(line)["event"].partition("http://")[2].split()[0]
            threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop it
            return where
    raise AssertionError("the server has not started")


@pytest.fixture(scope="module")
def where(saved: tuple[Path, Engine]) -> Iterator[str]:
    with serving(saved[0], "--max-request", "1", "--timeout", "2") as (_, found):
        yield found


def rows(values: np.ndarray[Any, Any]) -> InferInput:
    given = InferInput("x", list(values.shape), "FP32")
    given.set_data_from_numpy(values, binary_data=True)
    return given


def post(where: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(f"http://{where}/v2/models/two/infer", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def body(values: np.ndarray[Any, Any] = ROWS) -> bytes:
    tensor = {"name": "x", "shape": list(values.shape), "datatype": "FP32", "data": values.tolist()}
    return json.dumps({"inputs": [tensor]}).encode()


@pytest.mark.parametrize("binary", [False, True])
def test_a_client_gets_what_the_engine_answers(saved: tuple[Path, Engine], where: str, binary: bool) -> None:
    client = InferenceServerClient(where)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("two")
    assert client.get_model_metadata("two")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 8]}]
    outputs = [InferRequestedOutput(f"output_{i}", binary_data=binary) for i in range(2)]
    found = client.infer("two", [rows(ROWS)], outputs=outputs, request_id="7")
    assert found.get_response()["id"] == "7"
    for index, expected in enumerate(saved[1](torch.from_numpy(ROWS))):
        np.testing.assert_allclose(found.as_numpy(f"output_{index}"), expected.numpy(), rtol=1e-5, atol=1e-6)


def test_clients_at_once_get_their_own_rows(saved: tuple[Path, Engine], where: str) -> None:
    def ask(seed: int) -> bool:
        values = np.random.default_rng(seed).normal(size=(1 + seed % 3, 8)).astype(np.float32)
        found = InferenceServerClient(where).infer("two", [rows(values)]).as_numpy("output_0")
        return bool(np.allclose(found, saved[1](torch.from_numpy(values))[0].numpy(), rtol=1e-4, atol=1e-5))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(64)))


def test_what_does_not_fit_is_refused_in_words(where: str) -> None:
    client = InferenceServerClient(where)
    with pytest.raises(InferenceServerException, match="no model 'three'"):
        client.infer("three", [rows(ROWS)])
    with pytest.raises(InferenceServerException, match="9"):
        client.infer("two", [rows(np.zeros((1, 9), np.float32))])
    assert post(where, b"{")[0] == 400
    assert post(where, b"\xff" * 100)[0] == 400
    assert post(where, b"[" * 100_000)[0] == 400
    status, _, said = post(where, bytes(2 << 20))
    assert (status, b"1048576 bytes" in said) == (413, True)
    assert post(where, body())[0] == 200


def test_half_a_request_harms_nobody(where: str) -> None:
    host, port = where.split(":")
    head = b"POST /v2/models/two/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection((host, int(port))) as gone:
        gone.sendall(head + b"{")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(head + b"{")
        assert post(where, body())[0] == 200
        assert b"408" in slow.recv(100)  # after --timeout
    assert post(where, body())[0] == 200


def test_what_happened_is_counted(where: str) -> None:
    post(where, body())
    with urllib.request.urlopen(f"http://{where}/metrics", timeout=20) as answer:
        text = answer.read().decode()
    assert 'eqsat_requests_total{model="two",status="200"}' in text
    assert "eqsat_batch_samples_bucket" in text


def test_accepted_requests_are_answered_before_it_stops(saved: tuple[Path, Engine]) -> None:
    # The delay holds requests back: they wait when the signal comes.
    with serving(saved[0], "--max-delay", "1500", "--max-batch", "64") as (process, where):
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(post, where, body()) for _ in range(8)]
            time.sleep(0.7)
            process.send_signal(signal.SIGTERM)
            assert [each.result()[0] for each in asked] == [200] * 8
        assert process.wait(20) == 0


def test_one_too_many_is_told_when_to_come_back(saved: tuple[Path, Engine]) -> None:
    with serving(saved[0], "--max-delay", "1500", "--max-batch", "64", "--queue", "2") as (_, where):
        with ThreadPoolExecutor(8) as pool:
            answers = [each.result() for each in [pool.submit(post, where, body()) for _ in range(8)]]
        statuses = [status for status, _, _ in answers]
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 2
        assert all(int(headers["retry-after"]) >= 1 for status, headers, _ in answers if status == 503)
        assert post(where, body())[0] == 200


def test_it_starts_again_after_being_killed(saved: tuple[Path, Engine]) -> None:
    with serving(saved[0]) as (process, where):
        os.kill(process.pid, signal.SIGKILL)
        process.wait(20)
    with serving(saved[0], "--port", where.split(":")[1]) as (_, again):
        assert again == where
        assert post(again, body())[0] == 200


def test_a_taken_port_and_no_artifact_are_errors(
    saved: tuple[Path, Engine], tmp_path: Path, where: str
) -> None:
    command = [sys.executable, "-m", "eqsat_deploy", "serve"]
    port = where.split(":")[1]
    taken = subprocess.run([*command, str(saved[0]), "--port", port], capture_output=True, text=True)
    assert taken.returncode not in (0, 1)
    assert f"cannot listen at 127.0.0.1:{port}" in taken.stderr
    none = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert none.returncode not in (0, 1)
    assert str(tmp_path) in none.stderr
