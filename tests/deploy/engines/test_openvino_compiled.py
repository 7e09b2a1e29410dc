"""Calls by many threads, in both modes, from a cache and on in forked processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx

import eqsat_deploy as eqd
from eqsat_deploy import cache, openvino_compiled
from eqsat_deploy.artifact import read
from eqsat_deploy.deployment import Batch
from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.errors import ArtifactError, EngineError, InputError, UnknownNameError
from eqsat_deploy.quantization import quantize
from eqsat_deploy.torchless import load as load_without_torch
from tests.deploy.placing import ADDS, WEIGHTED, Residual, images, int8, traced

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
MODES: list[dict[str, Any]] = [{}, {"mode": "throughput"}, {"streams": 2, "threads": 2}]


@pytest.fixture(scope="module")
def module() -> fx.GraphModule:
    torch.manual_seed(0)
    return quantize(int8(traced(Residual(), torch.zeros(1, 3, 32, 32)), WEIGHTED + ADDS), images(3))


@pytest.fixture(scope="module")
def saved(module: fx.GraphModule, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "net.eqsat"
    OpenVINOEngine.build(module, batch=Batch(1, 2, 8)).save(path)
    return path


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept" / "compiled"


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the batch of every compilation that is made, and not read."""
    made: list[int] = []
    original = openvino_compiled.reshape
    monkeypatch.setattr(
        openvino_compiled, "reshape", lambda model, shapes, batch: made.append(batch) or original(model, shapes, batch)
    )  # fmt: skip
    return made


def batches(count: int) -> list[Tensor]:
    return [images(1, batch=1 + index % 3, seed=index)[0] for index in range(count)]


@pytest.mark.parametrize("options", MODES)
def test_any_thread_gets_its_own_results(module: fx.GraphModule, options: dict[str, Any]) -> None:
    engine = OpenVINOEngine.build(module, batch=Batch(1, 2, 8), options=options)
    many = options.get("streams") == 2 or (bool(options) and (os.cpu_count() or 1) > 1)
    assert (engine.concurrency > 1) == many
    given = batches(60)
    expected = [engine(x) for x in given]
    with ThreadPoolExecutor(8) as pool:
        for found, wanted in zip(pool.map(engine, given * 3), expected * 3, strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.parametrize("options", MODES)
def test_map_gives_results_in_order_as_they_are_asked_for(
    module: fx.GraphModule, options: dict[str, Any]
) -> None:
    engine = OpenVINOEngine.build(module, batch=Batch(1, 2, 8), options=options)
    given, read = batches(40), 0

    def reading() -> Iterator[Any]:
        nonlocal read
        for read, x in enumerate(given, 1):
            yield {"x": x} if read % 2 else (x,)

    mapped = engine.map(reading())
    assert read == 0
    first = next(mapped)
    assert read <= 2 * engine.concurrency + 1
    for found, x in zip([first, *mapped], given, strict=True):
        assert torch.equal(found, engine(x))
    broken = engine.map([given[0], given[0][:, :2], given[0]])
    assert torch.equal(next(broken), engine(given[0]))
    with pytest.raises(InputError, match="input 'x': shape"):
        list(broken)
    with pytest.raises(InputError, match="batches"):
        engine.map(3)


def test_many_threads_compile_each_size_once(
    module: fx.GraphModule, compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = OpenVINOEngine.build(module, batch=Batch(1, 2, 8))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(engine, [images(1, batch=size)[0] for size in (3, 4, 5, 1) * 4]))
    assert compilations == [2, openvino_compiled.ANY]


def test_what_fails_gives_its_request_back(module: fx.GraphModule) -> None:
    engine = OpenVINOEngine.build(module)
    x = images(1, batch=1)[0]
    expected = engine(x)
    for _ in range(3):
        with pytest.raises(EngineError, match="fails on"):
            engine._flat([x[:, :2]], 1)
    assert torch.equal(engine(x), expected)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"mode": "speed"}, UnknownNameError, "openvino mode 'speed'.*throughput"),
        ({"precision": "f8"}, UnknownNameError, "openvino precision 'f8'"),
        ({"streams": 0}, InputError, "streams=0: a whole number from 1"),
        ({"stream": 2}, UnknownNameError, "openvino option 'stream'.*'streams'"),
    ],
)
def test_options_that_there_are_not_are_errors(
    module: fx.GraphModule, options: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        OpenVINOEngine.build(module, options=options)


@pytest.mark.parametrize("precision", ["bf16", "f16"])
def test_what_the_processor_has_not_is_refused(
    module: fx.GraphModule, saved: Path, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = openvino_compiled.capabilities()
    assert {"FP32", "INT8"} <= set(found)
    if openvino_compiled.CHOICES["precision"][precision] in found:
        engine = OpenVINOEngine.build(
            traced(Residual(), torch.zeros(1, 3, 32, 32)), options={"precision": precision}
        )
        names = {"bf16": "bfloat16", "f16": "float16"}
        assert names[precision] in {layer.precision for layer in engine.layers()}
    monkeypatch.setattr(openvino_compiled, "capabilities", lambda: ["FP32", "INT8"])
    with pytest.raises(
        EngineError, match=f"precision='{precision}': this processor computes in FP32, INT8; leave"
    ):
        OpenVINOEngine.build(module, options={"precision": precision})
    manifest = read(saved)
    with pytest.raises(EngineError, match="this processor computes in"):
        OpenVINOEngine.load_files(saved / "engine", manifest.signature, {"precision": precision})


def test_what_was_loaded_once_compiles_no_more(saved: Path, kept: Path, compilations: list[int]) -> None:
    given = batches(3)
    first = eqd.load(saved)
    expected = [first(x) for x in given]
    assert compilations == [2, openvino_compiled.ANY]
    assert len(list(kept.iterdir())) == 2
    for load in (eqd.load, load_without_torch):
        again = load(saved)
        for x, wanted in zip(given, expected, strict=True):
            found = again(x if load is eqd.load else x.numpy())
            assert torch.equal(torch.as_tensor(found), wanted)
    assert compilations == [2, openvino_compiled.ANY]
    assert [layer.nodes for layer in first.layers()] == [layer.nodes for layer in eqd.load(saved).layers()]


def test_nothing_old_is_read(
    saved: Path, kept: Path, compilations: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(saved)

    def made(folder: Path = saved / "engine", **options: Any) -> bool:
        before = len(compilations)
        OpenVINOEngine.load_files(folder, found.signature, options)
        return len(compilations) > before

    assert [made(), made()] == [True, False]
    for options in ({"threads": 1}, {"mode": "throughput"}, {"streams": 2}, {"shapes": "dynamic"}):
        assert [made(**options), made(**options)] == [True, False]
    other = tmp_path / "engine"
    other.mkdir()
    for file in (saved / "engine").iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert not made(other)
    weights = bytearray((other / "model.bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    (other / "model.bin").write_bytes(weights)
    assert [made(other), made(other)] == [True, False]
    monkeypatch.setattr("openvino.__version__", "2099.1")
    assert made()
    monkeypatch.undo()


def test_a_damaged_one_is_compiled_again(saved: Path, kept: Path, compilations: list[int]) -> None:
    x = images(1, batch=2)[0]
    expected = eqd.load(saved)(x)
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(eqd.load(saved)(x), expected)
    assert compilations == [2, 2]
    assert file.read_bytes()[32:] != b""


@pytest.mark.parametrize("load", [eqd.load, load_without_torch])
@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_what_is_kept_does_not_hide_that_the_artifact_is_damaged(
    saved: Path, kept: Path, tmp_path: Path, load: Callable[[Path], Any], name: str
) -> None:
    path = tmp_path / "net.eqsat"
    shutil.copytree(saved, path)
    load(path)
    assert list(kept.iterdir())
    content = (path / "engine" / name).read_bytes()
    (path / "engine" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=f"{name} is not what was saved"):
        load(path)


def test_processes_share_a_cache_from_empty_on(saved: Path, kept: Path) -> None:
    script = (
        "import sys, numpy, eqsat_deploy.torchless as t\n"
        "print(t.load(sys.argv[1])(numpy.ones((2, 3, 32, 32), numpy.float32)).tolist())"
    )
    running = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, str(saved)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]  # fmt: skip
    said = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(said) == 1
    assert len(list(kept.iterdir())) == 1
    found = np.asarray(eval(said.pop()))
    np.testing.assert_array_equal(found, load_without_torch(saved)(np.ones((2, 3, 32, 32), np.float32)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("options", MODES[:2])
def test_a_forked_process_is_told_to_be_started_otherwise(
    module: fx.GraphModule, saved: Path, options: dict[str, Any]
) -> None:
    engine = OpenVINOEngine.build(module, options=options)
    x = images(1, batch=1)[0]
    engine(x)
    stop = Event()

    def call() -> None:
        while not stop.is_set():
            engine(x)

    threads = [Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for use in (lambda: engine(x), lambda: eqd.load(saved)) * 2:
            child = os.fork()
            if not child:
                try:
                    use()
                except (EngineError, ArtifactError) as error:
                    os._exit(7 if "`spawn`" in str(error) else 1)
                os._exit(2)
            assert _status(child) == 7
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    engine(x)


def _status(child: int) -> int:
    """The exit code; a child that hangs is killed."""
    for _ in range(3000):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9


def test_garbage_options_of_an_artifact_are_errors(saved: Path, tmp_path: Path) -> None:
    found = read(saved)
    found.manifest.options["mode"] = "speed"
    with pytest.raises(UnknownNameError, match="openvino mode"):
        OpenVINOEngine.load_files(saved / "engine", found.signature, found.manifest.options)
    with pytest.raises(ArtifactError):
        eqd.load(tmp_path)
