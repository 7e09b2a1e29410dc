from __future__ import annotations

import json
import threading
from typing import ClassVar

import pytest

from eqsat_deploy import measured as module
from eqsat_deploy.cache import write
from eqsat_deploy.deployment import Signature, deployment
from eqsat_deploy.engines import Batch, Engine, Layer
from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.errors import InputError
from eqsat_deploy.measured import Measured
from eqsat_deploy.price import kernel_of, specs_of
from eqsat_deploy.search import explore
from eqsat_deploy.targets import find_cost, find_target, target_of
from eqsat_extraction.cost_models import find_cost_model
from eqsat_extraction.kernel import CostModel
from tests.deploy.test_build import Halves
from tests.support.models import Residual, image, randomized

MODEL = randomized(Residual())
FLOAT, INTEGER, OTHER = 3.0, 50.0, 1000.0


class Timed(Engine):
    """Takes `FLOAT` for every node of a float kernel, `INTEGER` for those of an INT8 kernel, and more for all else."""

    name = "timed"
    built: ClassVar[list[set[str]]] = []
    fails: ClassVar[dict[str, BaseException]] = {}
    stops: ClassVar[int | None] = None
    release: ClassVar[str] = "1"

    @classmethod
    def unavailable(cls):
        return None

    @classmethod
    def build(cls, built, *, batch=None, options=None):
        engine = cls(Signature.of(built, batch or Batch()))
        engine.kernels = deployment(built).placement.kernels
        anchors = {kernel.anchor.rstrip("0123456789_") for kernel in engine.kernels}
        if cls.stops is not None and len(cls.built) >= cls.stops:
            raise KeyboardInterrupt
        cls.built.append({kernel.anchor for kernel in engine.kernels})
        for name, error in cls.fails.items():
            if name in anchors:
                raise error
        return engine

    def layers(self, *inputs):
        assert len(inputs) == len(self.signature.inputs)
        found = [Layer("reorder", "Reorder", "float32", OTHER)]
        for kernel in self.kernels:
            us = INTEGER if kernel.precision == "int8" else FLOAT
            found += [
                Layer(node, "kernel", kernel.precision, OTHER if "reader" in node else us, (node,))
                for node in kernel.nodes
            ]
        return tuple(found)

    def run(self, inputs, batch):
        raise NotImplementedError

    def save_files(self, folder):
        raise NotImplementedError

    @classmethod
    def load_files(cls, folder, signature, options):
        raise NotImplementedError

    @property
    def device(self):
        return "a device (here)"

    @property
    def version(self):
        return self.release


class Table(Halves):
    name = "table"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("EQSAT_DEPLOY_CACHE", str(tmp_path))
    for name, value in {"built": [], "fails": {}, "stops": None, "release": "1"}.items():
        monkeypatch.setattr(Timed, name, value)


def searched(cost):
    return explore(MODEL, image(), cost=cost, time_limit=None, work_limit=10**6)


def test_kernels_take_what_their_layers_take_and_the_fastest_form_is_chosen() -> None:
    cost = Measured(Table(), Timed)
    assert isinstance(cost, CostModel)
    assert (cost.name, cost.unit, cost.int8) == ("measured:table", "us", True)
    found = searched(cost)
    known = {kernel: us for kernel, us in cost.times.items() if us is not None}
    for kernel, us in known.items():
        integer = kernel.inputs[0].dtype == "int8"
        assert us == (INTEGER if integer else FLOAT) * (1 + len(kernel.epilogue)), kernel
    assert any(kernel.output.dtype == "int8" for kernel in known)  # what reads its codes is not its own
    assert len(known) > 10
    by_table = explore(MODEL, image(), cost=Table())
    assert sum(by_table.space.choices[i][1].integer for i in by_table.launches) > 0
    assert sum(found.space.choices[i][1].integer for i in found.launches) == 0  # as measured, float is faster


def test_what_is_not_measured_is_priced_by_the_table_in_proportion() -> None:
    Timed.fails = {"max_pool": RuntimeError("no kernel"), "stem": RuntimeError("no kernel")}
    cost = Measured(Table(), Timed)
    found = searched(cost)
    specs = specs_of(found.space, cost, 1)
    unknown = [kernel for kernel, us in cost.times.items() if us is None]
    assert unknown
    assert all(cost.price(kernel) == cost.scale * Table().price(kernel) for kernel in unknown)
    assert cost.scale in {us / Table().price(kernel) for kernel, us in cost.times.items() if us}
    free = next(kernel_of(specs, *c) for c in found.space.choices if not c[1].is_launch and not c[1].is_leaf)
    assert Measured(find_cost_model("openvino_int8"), Timed).price(free) == 0


def test_what_is_known_is_not_measured_again() -> None:
    first = Measured(Table(), Timed)
    searched(first)
    builds = len(Timed.built)
    searched(first)
    assert len(Timed.built) == builds
    again = Measured(Table(), Timed)
    searched(again)
    assert len(Timed.built) == builds + 1  # which tells the version
    assert {k: v for k, v in again.times.items() if v} == {
        k: first.times[k] for k, v in again.times.items() if v
    }
    Timed.release = "2"
    searched(Measured(Table(), Timed))
    assert len(Timed.built) == 2 * builds + 1


def test_an_interruption_loses_one_bundle(monkeypatch) -> None:
    monkeypatch.setattr(module, "BUNDLE", 4)
    Timed.stops = 3  # one that tells the version, and two bundles
    with pytest.raises(KeyboardInterrupt):
        searched(Measured(Table(), Timed))
    Timed.stops = None
    before = list(Timed.built)
    cost = Measured(Table(), Timed)
    searched(cost)
    total = sum(us is not None for us in cost.times.values())
    assert total > 8
    assert -(-(len(cost.times) - 8) // 4) == len(Timed.built) - len(before) - 1


def test_what_is_left_when_time_is_over_is_for_the_next_run(monkeypatch) -> None:
    monkeypatch.setattr(module, "BUNDLE", 4)
    with pytest.warns(UserWarning, match=r"cost='measured:table': \d+ kernels are not measured after 0 s"):
        searched(Measured(Table(), Timed, seconds=0))
    complete = Measured(Table(), Timed)
    searched(complete)
    assert len(complete.times) > 8


def test_kernels_that_cannot_matter_keep_their_prices() -> None:
    class Steep(Table):
        def price(self, kernel):
            return 1.0 if kernel.inputs and kernel.inputs[0].dtype == "int8" else 50.0

    cost = Measured(Steep(), Timed)
    found = searched(cost)
    specs = specs_of(found.space, cost, 1)
    floats = {
        kernel_of(specs, number, node)
        for number, node in found.space.choices
        if node.name == "conv2d" and not node.integer
    }
    assert len(floats & set(cost.times)) < len(floats)
    assert all(kernel_of(specs, *found.space.choices[i]) in cost.times for i in found.launches
               if found.space.choices[i][1].name != "quantize")  # what is chosen is measured  # fmt: skip


def test_readers_never_see_half_a_file(tmp_path) -> None:
    path, stop, bad = tmp_path / "kernel.json", threading.Event(), []
    write(path, json.dumps({"us": 0}))

    def read() -> None:
        while not stop.is_set():
            try:
                json.loads(path.read_text())
            except ValueError as error:
                bad.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(300):
        write(path, json.dumps({"us": number, "kernel": "x" * 5000}))
    stop.set()
    reader.join()
    assert not bad
    assert [p.name for p in tmp_path.iterdir()] == ["kernel.json"]


def test_it_is_found_by_name_for_the_engine_that_it_measures_on() -> None:
    found = find_cost("measured:openvino_int8")
    assert isinstance(found, Measured)
    assert found.engine is OpenVINOEngine
    assert found.grid == find_target("openvino").grid_here
    assert target_of(found.name) is find_target("openvino")
    with pytest.raises(InputError, match="'flops' prices for no engine"):
        find_cost("measured:flops")


@pytest.mark.slow
def test_openvino_tells_what_kernels_take() -> None:
    cost = Measured(Table(), OpenVINOEngine, find_target("openvino").grid)
    found = searched(cost)
    known = {kernel: us for kernel, us in cost.times.items() if us}
    assert {kernel.op for kernel in known} >= {"conv2d", "linear"}
    assert {kernel.inputs[0].dtype for kernel in known} >= {"int8"}
    assert len(known) > 0.7 * len(cost.times)
    chosen = [found.space.choices[i] for i in found.launches]
    specs = specs_of(found.space, cost, 1)
    assert any(kernel_of(specs, *choice) in known for choice in chosen)
