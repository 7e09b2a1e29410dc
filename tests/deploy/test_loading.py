"""Artifacts in other processes: without egglog and the model's code, and without torch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import eqsat_deploy as eqd
from eqsat_deploy import torchless
from eqsat_deploy.engines import Batch
from eqsat_deploy.errors import ArtifactError, InputError
from eqsat_deploy.manifest import DTYPES
from eqsat_deploy.record import Record
from tests.deploy.placing import traced
from tests.support.engines import Double, Fake

MODEL = """
from typing import NamedTuple
import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

class Pair(NamedTuple):
    first: torch.Tensor
    rest: list

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, x, *, pair, scale=2.0, mode="sum", **more):
        left, right = pair["left"], pair["right"][0]
        y = torch.relu(self.layer(x)) * scale + left
        return {"pair": Pair(y, [y.sum(1), right + 1]), "kept": BaseModelOutput(last_hidden_state=y), "mode": mode}
"""
BLOCKED = ("egglog", "numba", "highspy", "rich", "eqsat_rewrites", "transformers", "a_model", "beartype")
# Prints what the engine returns for the arrays of a file, and which modules are there in the end.
SCRIPT = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"{name} is blocked")
BLOCKED = sys.argv[3].split(",")
sys.meta_path.insert(0, Blocker())
if "torch" in BLOCKED:
    sys.modules["torch"] = None
import numpy as np
import eqsat_deploy as eqd
engine = eqd.load(sys.argv[1])
data = np.load(sys.argv[2])
given = dict(data)
if "torch" not in BLOCKED:
    import torch
    given = {name: torch.from_numpy(value) for name, value in given.items()}
found = engine(given["x"], pair={"left": given["left"], "right": [given["right"]]})
pair, kept = found["pair"], found["kept"]
print(json.dumps({
    "first": pair.first.tolist(), "rest": [value.tolist() for value in pair.rest], "mode": found["mode"],
    "kept": kept.last_hidden_state.tolist(), "empty": kept["attentions"], "kind": type(engine).__name__,
    "language": "eqsat_deploy.language" in sys.modules,
    "modules": sorted({name.partition(".")[0] for name, module in sys.modules.items() if module}),
}))
"""


def arrays(size: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(size)
    return {
        "x": draw.normal(size=(size, 4)).astype(np.float32),
        "left": draw.normal(size=(size, 3)).astype(np.float32),
        "right": draw.integers(0, 9, (size, 2)),
    }


def called(function: Any, given: dict[str, Any], **more: Any) -> Any:
    return function(given["x"], pair={"left": given["left"], "right": [given["right"]]}, **more)


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def saved(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, ModuleType]:
    pytest.importorskip("transformers")
    pytest.importorskip(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "a_model.py").write_text(MODEL)
    spec = importlib.util.spec_from_file_location("a_model", folder / "a_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    given = {name: torch.from_numpy(value) for name, value in arrays(2).items()}
    example = {"x": given["x"], "pair": {"left": given["left"], "right": [given["right"]]}}
    optimized = eqd.optimize(module.Net().eval(), example, cost="flops")
    optimized.build(request.param, batch=Batch(1, 2, 8), baseline=False).save(folder / "net.eqsat")
    return folder / "net.eqsat", module


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("blocked", [BLOCKED, (*BLOCKED, "torch", "onnx", "onnxscript")])
def test_another_process_needs_the_runtime_alone(
    saved: tuple[Path, ModuleType], tmp_path: Path, blocked: tuple[str, ...], size: int
) -> None:
    if "torch" not in blocked and saved[0].parent.name.startswith("onnxruntime"):
        blocked = tuple(name for name in blocked if name not in ("onnx", "onnxscript"))
    given = arrays(size)
    np.savez(tmp_path / "data.npz", **given)
    words = [sys.executable, "-c", SCRIPT, str(saved[0]), str(tmp_path / "data.npz"), ",".join(blocked)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert not set(found["modules"]) & set(blocked)
    if saved[0].parent.name.startswith("openvino"):
        assert not found["language"]  # which takes longer to import than most artifacts take to read
    expected = called(saved[1].Net().eval(), {name: torch.from_numpy(value) for name, value in given.items()})
    np.testing.assert_allclose(found["first"], expected["pair"].first.detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["rest"][0], expected["pair"].rest[0].detach(), rtol=1e-4, atol=1e-5)
    assert found["rest"][1] == expected["pair"].rest[1].tolist()
    assert found["kept"] == found["first"]
    assert (found["mode"], found["empty"]) == ("sum", None)
    assert (found["kind"] == "ArrayEngine") == ("torch" in blocked)


def test_what_does_not_fit_is_refused_without_torch_too(saved: tuple[Path, ModuleType]) -> None:
    engine = torchless.load(saved[0])
    given = arrays(3)
    found = called(engine, given, mode="sum", scale=2.0)
    assert isinstance(found["kept"], Record)
    assert found["kept"].last_hidden_state.shape == (3, 3)
    for wrong, says in (
        ({"x": given["x"][:, :3]}, r"'x': \[batch, 4\] float32 is expected, not \[3, 3\] float32"),
        ({"x": given["x"].astype(np.float64)}, "not .* float64"),
        ({"x": given["x"][:2]}, r"disagree on the batch size: \[2, 3\]"),
        (arrays(9), "batch of 9: it was built for 1 to 8"),
    ):
        with pytest.raises(InputError, match=says):
            called(engine, given | wrong)
    with pytest.raises(InputError, match="'mode' is always what it was built for"):
        called(engine, given, mode="mean")
    with pytest.raises(InputError, match=r"missing a required.* 'pair'"):
        engine(given["x"])
    with pytest.raises(
        InputError, match=r"unexpected.*'why': call it as .*, with x \[batch, 4\] float32, pair_left"
    ):
        called(engine, given, why=1)
    with pytest.raises(InputError, match="'pair': it is nested otherwise"):
        engine(given["x"], pair={"left": given["left"]})


def test_an_engine_that_needs_torch_says_so(tmp_path: Path) -> None:
    Fake.build(traced(Double(), torch.zeros(1, 3))).save(tmp_path / "fake.eqsat")
    with pytest.raises(ArtifactError, match="needs torch: engines of 'fake'"):
        torchless.load(tmp_path / "fake.eqsat")
    with pytest.raises(ArtifactError, match="not an artifact"):
        torchless.load(tmp_path)


def test_the_manifests_dtypes_are_torchs() -> None:
    assert {name: getattr(torch, name).itemsize for name in DTYPES if hasattr(torch, name)} == {
        name: size for name, size in DTYPES.items() if hasattr(torch, name)
    }
    arrays_have = {
        "bool",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "float16",
        "bfloat16",
        "float32",
        "float64",
    }
    assert arrays_have <= set(DTYPES)
