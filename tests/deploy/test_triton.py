"""Folders for the Triton Inference Server: read with Triton's own message, and against the files that they describe."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from eqsat_deploy.engines import Batch
from eqsat_deploy.errors import EngineError, InputError
from eqsat_deploy.export import Export, export
from eqsat_deploy.quantization import quantize
from tests.deploy.placing import Residual, images, int8, traced
from tests.support.models import randomized
from tests.support.stages import optimized
from tests.support.targets import Register, register, target

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
text_format = pytest.importorskip("google.protobuf.text_format")
__all__ = ["register"]


class Two(nn.Module):
    """Integers in; out a sum that has no axis besides the batch, and the positions of the largest."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 8), nn.Linear(8, 5)

    def forward(self, ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.relu(self.head(self.table(ids)))
        return (hidden.sum((1, 2)) * weight), hidden.argmax(2)


class Folded(nn.Module):
    """Turns a batch of pairs into one twice as long: requests that were joined could not be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, pairs: Tensor) -> Tensor:
        return self.layer(pairs).reshape(-1, 3)


@pytest.fixture(scope="module")
def messages() -> ModuleType:
    """Triton's ModelConfig: a file of tritonclient, whose package around it needs gRPC."""
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def module() -> fx.GraphModule:
    torch.manual_seed(0)
    return quantize(int8(traced(Residual(), torch.zeros(1, 3, 32, 32))), images(3))


def read(folder: Path, messages: ModuleType) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), messages.ModelConfig())


def shapes(config: Any, messages: ModuleType) -> dict[str, tuple[str, list[int]]]:
    """Dtypes and whole shapes of the tensors that the model itself has, as Triton composes them."""
    batch = [-1] * (config.max_batch_size > 0)
    return {
        each.name: (
            messages.DataType.Name(each.data_type).removeprefix("TYPE_"),
            batch + list(each.reshape.shape if each.HasField("reshape") else each.dims),
        )
        for each in (*config.input, *config.output)
    }


def described(path: Path) -> dict[str, tuple[str, list[int]]]:
    """The same out of an ONNX file."""
    names = {"tensor(float)": "FP32", "tensor(int64)": "INT64"}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return {
        each.name: (names[each.type], [-1 if isinstance(n, str) else n for n in each.shape])
        for each in (*session.get_inputs(), *session.get_outputs())
    }


def computed(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})


@pytest.mark.parametrize(("target", "kind"), [("onnxruntime", "KIND_CPU"), ("tensorrt", "KIND_GPU")])
def test_a_folder_says_what_its_file_is(
    module: fx.GraphModule, messages: ModuleType, tmp_path: Path, target: str, kind: str
) -> None:
    made = export(module, tmp_path / "net", target, batch=Batch(1, 4, 16), triton=True)
    file = tmp_path / "net" / "1" / "model.onnx"
    assert made.files == (file, tmp_path / "net" / "config.pbtxt")
    config = read(tmp_path / "net", messages)
    assert config.backend == target
    assert config.max_batch_size == 16
    assert list(config.dynamic_batching.preferred_batch_size) == [4]
    assert config.dynamic_batching.max_queue_delay_microseconds > 0
    (group,) = config.instance_group
    assert messages.ModelInstanceGroup.Kind.Name(group.kind) == kind
    assert shapes(config, messages) == described(file)
    x = images(1, batch=3)[0]
    expected = module(x).detach().numpy()
    assert np.abs(computed(file, x)[0] - expected).max() < 0.05 * np.abs(expected).max()
    if target == "tensorrt":
        assert made.command is not None
        assert f"--saveEngine={tmp_path}/net/1/model.plan" in made.command
        assert "--maxShapes=x:16x3x32x32" in made.command


def test_tensors_of_every_kind_are_described(messages: ModuleType, tmp_path: Path) -> None:
    form = optimized(
        randomized(Two()), (torch.zeros(2, 6, dtype=torch.int64), torch.ones(2)), cost="ort_int8"
    )
    form.export(tmp_path / "two", "onnxruntime", triton=True)
    config = read(tmp_path / "two", messages)
    assert shapes(config, messages) == described(tmp_path / "two" / "1" / "model.onnx")
    assert [(each.name, list(each.dims)) for each in config.output] == [("output_0", [1]), ("output_1", [6])]
    ids, weight = torch.randint(9, (3, 6)), torch.rand(3)
    for found, wanted in zip(
        computed(tmp_path / "two" / "1" / "model.onnx", ids, weight), form(ids, weight), strict=True
    ):
        np.testing.assert_allclose(found, wanted.detach().numpy(), rtol=1e-4)


def test_requests_that_cannot_be_told_apart_are_not_joined(messages: ModuleType, tmp_path: Path) -> None:
    form = optimized(randomized(Folded()), torch.randn(2, 2, 4), cost="ort_int8")
    form.export(tmp_path / "folded", "onnxruntime", triton=True)
    config = read(tmp_path / "folded", messages)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [-1, 2, 4]


def test_openvino_gets_its_own_files_and_runs_requests_as_they_come(
    module: fx.GraphModule, messages: ModuleType, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    made = export(module, tmp_path / "net", "openvino", batch=2, triton=True)
    assert [file.name for file in made.files] == ["model.bin", "model.xml", "config.pbtxt"]
    assert sorted(file.name for file in (tmp_path / "net").iterdir()) == ["1", "config.pbtxt"]
    config = read(tmp_path / "net", messages)
    assert (config.backend, config.max_batch_size) == ("openvino", 0)
    model = openvino.Core().read_model(tmp_path / "net" / "1" / "model.xml")
    (given,), (result,) = model.inputs, model.outputs
    assert {each.name: list(each.dims) for each in (*config.input, *config.output)} == {
        given.get_any_name(): [-1, 3, 32, 32],
        result.get_any_name(): [-1, *(d.get_length() for d in list(result.partial_shape)[1:])],
    }
    x = images(1, batch=5)[0]
    found = openvino.Core().compile_model(model, "CPU")(x.numpy())[0]
    expected = module(x).detach().numpy()
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


def test_a_folder_is_written_again(module: fx.GraphModule, messages: ModuleType, tmp_path: Path) -> None:
    for maximum in (8, 32):
        export(module, tmp_path / "net", "onnxruntime", batch=Batch(maximum=maximum), triton=True)
        assert read(tmp_path / "net", messages).max_batch_size == maximum
    assert sorted(p.name for p in (tmp_path / "net").rglob("*")) == ["1", "config.pbtxt", "model.onnx"]


def test_what_triton_does_not_serve_is_said(
    module: fx.GraphModule, tmp_path: Path, register: Register
) -> None:
    with pytest.raises(InputError, match="minimum has to be 1"):
        export(module, tmp_path / "net", "onnxruntime", batch=Batch(2, 2, 8), triton=True)
    with pytest.raises(EngineError, match=r"cannot write .*nowhere"):
        export(module, tmp_path / "nowhere" / "models" / "net", "onnxruntime", triton=True)
    register(other=target("other"))
    with pytest.raises(InputError, match="'other' does not say how Triton serves it"):
        export(module, tmp_path / "net", "other", triton=True)
    assert not any(tmp_path.iterdir())


def test_an_export_is_printed(module: fx.GraphModule, tmp_path: Path) -> None:
    made = export(module, tmp_path / "net", triton=True)
    assert isinstance(made, Export)
    assert str(made).startswith(f"wrote {tmp_path}/net/1/model.onnx, {tmp_path}/net/config.pbtxt: x [batch, ")
