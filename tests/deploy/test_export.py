"""Files for people who build elsewhere: what they compute, what they are called, and the command that builds them."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx

from eqsat_deploy.engines import Batch
from eqsat_deploy.engines.onnx import ONNXRUNTIME, TENSORRT, Lane, save_onnx
from eqsat_deploy.errors import EngineError, InputError, UnknownNameError
from eqsat_deploy.export import export
from eqsat_deploy.quantization import quantize
from tests.deploy.placing import Residual, images, int8, traced
from tests.support.models import image, randomized
from tests.support.stages import optimized

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def module() -> fx.GraphModule:
    torch.manual_seed(0)
    return quantize(int8(traced(Residual(), torch.zeros(1, 3, 32, 32))), images(3))


def computed(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_a_file_computes_what_the_module_computes(
    module: fx.GraphModule, tmp_path: Path, target: str
) -> None:
    found = export(module, tmp_path / "model.onnx", target)
    assert found.files == (tmp_path / "model.onnx",)
    x = images(1, batch=3)[0]
    expected = module(x).detach().numpy()
    off = np.abs(computed(tmp_path / "model.onnx", x) - expected).max()
    assert off < 0.05 * np.abs(expected).max()
    file = onnx.load(tmp_path / "model.onnx")
    assert {"stem", "depthwise", "pointwise", "head"} <= {
        node.name.partition(":")[0] for node in file.graph.node
    }
    weights = [tensor for tensor in file.graph.initializer if tensor.name.startswith("stem.weight")]
    assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in weights}


@pytest.mark.parametrize("lane", [ONNXRUNTIME, TENSORRT])
def test_weights_of_any_size_are_kept_beside_a_large_file(
    module: fx.GraphModule, tmp_path: Path, lane: Lane
) -> None:
    whole = save_onnx(module, tmp_path / "whole.onnx", lane=lane)
    split = save_onnx(module, tmp_path / "split.onnx", lane=lane, largest=0)
    assert split.files == (tmp_path / "split.onnx.data", tmp_path / "split.onnx")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["split.onnx", "split.onnx.data", "whole.onnx"]
    assert split.files[1].stat().st_size < whole.files[0].stat().st_size
    x = images(1, batch=2)[0]
    np.testing.assert_array_equal(computed(split.files[1], x), computed(whole.files[0], x))
    onnx.checker.check_model(split.files[1])  # by path, as of over 2 GB, and what is beside it too
    one, other = (
        onnx.load(files[-1], load_external_data=False).graph for files in (whole.files, split.files)
    )
    assert [node.name for node in one.node] == [node.name for node in other.node]
    outside = [t for t in other.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    assert onnx.TensorProto.INT8 in {t.data_type for t in outside}
    assert "stem" in {t.name.partition(".")[0] for t in outside}  # the others are too small to be worth it


def test_the_command_says_types_and_batch_sizes(module: fx.GraphModule, tmp_path: Path) -> None:
    command = export(module, tmp_path / "my model.onnx", batch=Batch(2, 4, 16)).command
    assert command is not None
    assert shlex.split(command) == [
        "trtexec",
        f"--onnx={tmp_path}/my model.onnx",
        f"--saveEngine={tmp_path}/my model.plan",
        "--stronglyTyped",
        "--minShapes=x:2x3x32x32",
        "--optShapes=x:4x3x32x32",
        "--maxShapes=x:16x3x32x32",
        "--profilingVerbosity=detailed",
        "--skipInference",
    ]
    assert "--maxShapes=x:8x3x32x32" in str(export(module, tmp_path / "model.onnx", batch=1))
    assert export(module, tmp_path / "model.onnx", "onnxruntime").command is None


def test_every_flag_of_the_command_is_in_the_table_of_flags(module: fx.GraphModule, tmp_path: Path) -> None:
    """The table says where they were looked up."""
    command = export(module, tmp_path / "model.onnx", batch=2).command
    assert command is not None
    table = (Path(__file__).parents[2] / "docs" / "how-to" / "tensorrt.md").read_text(encoding="utf-8")
    rows = "\n".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `--"))
    for word in shlex.split(command)[1:]:
        assert f"`{word.partition('=')[0]}" in rows, word


def test_an_optimized_module_exports_itself(tmp_path: Path) -> None:
    form = optimized(randomized(Residual()), image(2, 3, 32, 32), cost="trt_int8")
    found = form.quantize([image(4, 3, 32, 32)]).export(
        str(tmp_path / "model.onnx"), target="tensorrt", batch=2
    )
    assert str(found).splitlines()[0] == f"wrote {tmp_path}/model.onnx: x [batch, 3, 32, 32] float32"
    assert "trtexec --onnx=" in str(found)
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)


def test_what_cannot_be_exported_is_said(module: fx.GraphModule, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'openvino' reads no ONNX file: build.engine='openvino'"):
        export(module, tmp_path / "model.onnx", "openvino")
    with pytest.raises(UnknownNameError, match=r"unknown target 'tensort'.*tensorrt"):
        export(module, tmp_path / "model.onnx", "tensort")
    with pytest.raises(InputError, match="batch=0"):
        export(module, tmp_path / "model.onnx", batch=0)
    with pytest.raises(EngineError, match=r"cannot write .*nowhere"):
        export(module, tmp_path / "nowhere" / "model.onnx")


def test_a_file_that_fails_to_be_written_leaves_what_was_there(
    module: fx.GraphModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.onnx").write_text("before")

    def fail(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(EngineError, match="No space left"):
        save_onnx(module, tmp_path / "model.onnx", lane=TENSORRT)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("model.onnx", "before")]
