"""ATen calls that several operators stand for, and resampling: nothing stays opaque, and values are torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqsat_deploy.deployment import DEFAULT_BATCH, Signature, deployment
from eqsat_deploy.engines.onnx import ONNXRUNTIME, export_onnx
from eqsat_deploy.engines.program import export_program, flat_module
from eqsat_deploy.verify import relative_error
from tests.support.models import image
from tests.support.stages import assert_same, kinds, lowered, optimized, outputs


class Calls(nn.Module):
    """One function of an input (batch, 4, 6, 8) and of a matrix (4, 3)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.matrix = nn.Parameter(image(4, 3, seed=1))

    def forward(self, x: Tensor) -> Any:
        return self.function(x * 1.5, self.matrix)


CALLS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "where": lambda x, m: torch.where(x > 0, x, m.sum()),
    "where of numbers": lambda x, m: torch.where(x >= 0.5, 1.0, -1) * x,
    "logic": lambda x, m: x * ((x > 0) & (x < 1) | ~(x != x.amax())),
    "comparison of integers": lambda x, m: torch.where((x * 4).to(torch.int64) >= 2, 0.0, x),
    "masked_fill": lambda x, m: x.masked_fill(torch.logical_not(x.abs() <= 1), 0.25),
    "cumsum": lambda x, m: x.cumsum(2),
    "cumsum of booleans": lambda x, m: (x > 0).cumsum(1, dtype=torch.float32) + (x > 1).cumsum(2),
    "log_softmax": lambda x, m: F.log_softmax(x, 1),
    "nearest, by factor": lambda x, m: F.interpolate(x, scale_factor=2),
    "nearest-exact": lambda x, m: F.interpolate(x, (5, 3), mode="nearest-exact"),
    "bilinear": lambda x, m: F.interpolate(x, (9, 5), mode="bilinear"),
    "bilinear, corners aligned": lambda x, m: F.interpolate(x, (9, 5), mode="bilinear", align_corners=True),
    "bilinear, by a rounded factor": lambda x, m: F.interpolate(
        x, scale_factor=1.3, mode="bilinear", align_corners=True
    ),
    "bicubic": lambda x, m: F.interpolate(x, (9, 5), mode="bicubic"),
    "unfold": lambda x, m: F.unfold(x, (3, 2), dilation=(1, 2), padding=(1, 0), stride=(2, 1)),
    "fold": lambda x, m: F.fold(F.unfold(x, 3, padding=1, stride=2), (6, 8), 3, padding=1, stride=2),
    "reflection": lambda x, m: (F.pad(x, (1, 2, 3, 0), mode="reflect"), F.pad(x[:, 0], (2, 1), mode="reflect")),
    "replication": lambda x, m: F.pad(x, (1, 2, 3, 0), mode="replicate"),
    "taken": lambda x, m: (x[:, [2, -1, 0]], x[:, :, :, torch.tensor([[1, 2], [3, 3]])],
                           x.index_select(2, torch.tensor([4, 0]))),
    "assigned": lambda x, m: (torch.slice_scatter(x, x[:, :, 1:3] * 2, 2, 3, 5), torch.slice_scatter(x, x * 2, 1),
                              torch.select_scatter(x, x[:, 0], 1, 2)),
    "windows": lambda x, m: x.unfold(2, 4, 2).unfold(3, 3, 3),
    "reshaped as another": lambda x, m: x.transpose(1, 2).reshape_as(x).view_as(x),
    "conv3d": lambda x, m: F.conv3d(x[..., None] * m[0], m.T.reshape(1, 4, 3, 1, 1), padding=(1, 0, 0)),
    "filled to the batch": lambda x, m: (x.new_ones(x.shape[0], 1, 3) + m, torch.zeros(x.shape[0], 1) + x[:, 0, 0],
                                         torch.full_like(x, 3.0) + torch.full((x.shape[0], 1, 1, 8), 0.5)),
    "einsum with a parameter": lambda x, m: torch.einsum("nchw,cd->nhdw", x, m),
    "einsum of activations": lambda x, m: torch.einsum("n c h w, n c h v -> n w v h", x, x + 1),
    "einsum that sums": lambda x, m: torch.einsum("nchw,cd->dn", x, m),
    "einsum of one": lambda x, m: torch.einsum("nchw->nwc", x),
    "baddbmm": lambda x, m: torch.baddbmm(x[:, 0, :, :3], x[:, 1], x[:, 2].mT[:, :, :3], beta=0.5, alpha=2),
    "euclidean norm": lambda x, m: F.normalize(x, dim=(1, 3)),
    "sum norm": lambda x, m: torch.linalg.vector_norm(x, 1, dim=1),
    "maximum norm": lambda x, m: torch.linalg.vector_norm(x, float("inf"), dim=1, keepdim=True),
    "variance": lambda x, m: x.var((2, 3)),
    "deviation": lambda x, m: x.std(1, correction=0, keepdim=True),
    "unbiased deviation": lambda x, m: x.std(2),
    "deviation and mean": lambda x, m: torch.std_mean(x, (1, 2)),
    "variance and mean": lambda x, m: torch.var_mean(x, 1),
    "instance norm": lambda x, m: F.instance_norm(x, weight=m[:, 0], bias=m[:, 1]),
    "conv1d": lambda x, m: F.conv1d(x.flatten(2), m.reshape(4, 1, 3), m[:, 0], 2, "valid", 2, groups=4),
    "conv1d, same": lambda x, m: F.conv1d(x.flatten(2), m.reshape(4, 1, 3), padding="same", groups=4),
    "pools of sequences": lambda x, m: (F.avg_pool1d(x[:, :, 0], 2), F.max_pool1d(x[:, :, 0], 3, 1, 1)),
    "adaptive pool of a sequence": lambda x, m: F.adaptive_avg_pool1d(x[:, :, 0], 3),
    "adaptive maximum": lambda x, m: (F.adaptive_max_pool2d(x, 1), F.adaptive_max_pool2d(x, (3, 2))),
    "maximum without its place": lambda x, m: (x.max(2).values, x.min(1, keepdim=True)[0]),
    "pixel shuffle": lambda x, m: F.pixel_shuffle(x, 2),
    "pixel unshuffle": lambda x, m: F.pixel_unshuffle(x, 2),
    "channel shuffle": lambda x, m: F.channel_shuffle(x, 2),
    "repeat": lambda x, m: (x.repeat(1, 1, 3, 1), m.repeat(x.shape[0], 1, 1), x[:, :, :1].repeat(1, 1, 5, 1)),
    "many repeats": lambda x, m: x.repeat(2, 99, 1, 1),
    "transposed conv1d": lambda x, m: F.conv_transpose1d(x.flatten(2), m.reshape(4, 1, 3), m[:, 0], 2, 1, 1, 4, 2),
    "volumes": lambda x, m: F.conv3d(x.reshape(-1, 4, 2, 3, 8),
                                     m.reshape(4, 1, 3, 1, 1).expand(4, 1, 3, 2, 2),
                                     m[:, 0], (1, 1, 2), 1, (1, 2, 1), 4),
    "volumes, same": lambda x, m: F.conv3d(x.reshape(-1, 4, 2, 3, 8), m.T.reshape(1, 4, 3, 1, 1).expand(1, 4, 3, 1, 3),
                                           padding="same"),
    "transposed volumes": lambda x, m: F.conv_transpose3d(
        x.reshape(-1, 4, 2, 3, 8), m.reshape(4, 3, 1, 1, 1).expand(4, 3, 2, 2, 3), None, (2, 1, 2), 1, (1, 0, 1), 2
    ),
    "pools of volumes": lambda x, m: (F.avg_pool3d(x.reshape(-1, 4, 2, 3, 8), (2, 2, 3), (1, 1, 2), (1, 0, 1)),
                                      F.max_pool3d(x.reshape(-1, 4, 2, 3, 8), 2, (1, 2, 2), ceil_mode=True)),
    "slope of each channel": lambda x, m: F.prelu(x, m[:, 0]),
    "one slope": lambda x, m: F.prelu(x.flatten(2), m.mean().reshape(1)),
    "filled": lambda x, m: (torch.fill(x, 2.0) * x, torch.fill(x, m.sum()) + x,
                            torch.full_like(x, 3, dtype=torch.int64)),
    "gathered": lambda x, m: torch.gather(x, 2, (x[:, :, :3] > 0).to(torch.int64) + 1),
    "differences": lambda x, m: (x.diff(), (lambda i: i.diff(2, 1, prepend=i[:, :1] * 2))((x * 9).to(torch.int64))),
    "integers": lambda x, m: (lambda i: (i + i * 2 - 3, 5 - i, i // 3, i % 4, -i, i.abs(), i.clamp(-2, 3),
        i.clamp(min=0), torch.div(i, 2, rounding_mode="trunc"), torch.maximum(i, i.flip(3)), i + 0.5, i * x, i / 2,
        torch.add(i, i, alpha=3), i.to(torch.int32) + i))((x * 9).to(torch.int64)),
    "positions": lambda x, m: (lambda mask: torch.cumsum(mask, 1) * mask + 1)((x[:, 0, 0] > 0).to(torch.int64)),
    "remainders": lambda x, m: (x % 0.7, torch.fmod(x, 0.7), x // 0.6, torch.div(x, 0.6, rounding_mode="trunc"),
                                torch.atan2(x, x + 1)),
    "logsumexp": lambda x, m: (x.logsumexp((1, 2)), x.logsumexp(3, keepdim=True)),
    "flipped": lambda x, m: x.flip((1, 3)),
    "one hot": lambda x, m: F.one_hot((x[:, 0] > 0).to(torch.int64) + 1, 4),
    "empty slices": lambda x, m: (torch.cat([x[:, :, 6:], x, x[:, :, 2:2]], 2), x[:, 4:]),
    "functions": lambda x, m: (x.tanh().acos(), (x.abs() + 1.5).acosh(), x.tanh().asin(), x.asinh(), x.atan(),
        (x.tanh() * 0.9).atanh(), x.cosh(), x.sinh(), x.tan() * 0.1, x.sign(), x.trunc(), (x.abs() + 1).log2(),
        (x.abs() + 1).log10(), 2 ** x),
    "bounds of tensors": lambda x, m: torch.clamp(x, m.min() * 0.1, x.amax(3, keepdim=True) * 0.5),
    "reduced to numbers": lambda x, m: (x.mean(), x.sum(), x.max(), x.min()),
    "conditions": lambda x, m: ((x > 2).any(1), (x > 2).any(), torch.logical_xor(x > 0, x > 1),
        torch.isnan(x / (x * 0)), torch.isinf(x / 0)),
    "interleaved repeat": lambda x, m: x.repeat_interleave(3, 2),
    "bounds": lambda x, m: (x.clamp_min(0.1), x.clamp_max(0.2), x.clamp(max=0.3)),
    "square": lambda x, m: x.square(),
    "gated linear unit": lambda x, m: F.glu(x, 1),
    "addcmul": lambda x, m: torch.addcmul(x, x + 1, x - 1, value=0.5),
}  # fmt: skip


@pytest.fixture(scope="module")
def both() -> tuple[nn.Module, nn.Module]:
    """A model of all calls, which returns their results by name, and what it is optimized to."""
    model = Calls(lambda x, m: {name: call(x, m) for name, call in CALLS.items()}).eval()
    return model, optimized(model, image(2, 4, 6, 8))


def test_composed_calls_are_made_of_operators(both):
    assert not both[1].report.opaque


@pytest.mark.parametrize("name", CALLS)
def test_a_composed_call_computes_what_torch_computes(both, name):
    x = image(3, 4, 6, 8, seed=2)
    expected, actual = (outputs(lambda x, module=module: module(x)[name], x) for module in both)
    assert len(expected) == len(actual)
    assert relative_error(expected, actual) < 1e-5


@pytest.mark.parametrize("half", [0, 1])
def test_composed_calls_export_to_onnx(half):
    """In halves: in the graph of all, onnxscript's constant folding gives one name to two tensors."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    calls = list(CALLS.values())[half::2]
    model = Calls(lambda x, m: [call(x, m) for call in calls]).eval()
    module = optimized(model, image(2, 4, 6, 8))
    session = runtime.InferenceSession(export_onnx(module, lane=ONNXRUNTIME).model)
    x = image(3, 4, 6, 8, seed=2)
    actual = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert relative_error(outputs(model, x), [torch.from_numpy(array) for array in actual]) < 1e-4


def test_composed_calls_convert_to_openvino(both):
    openvino = pytest.importorskip("openvino")
    model, module = both
    signature = Signature.of(module, DEFAULT_BATCH)
    dynamic = [[size is None for size in spec.shape] for spec in signature.inputs]
    converted = openvino.convert_model(export_program(flat_module(module), signature.zeros(2), dynamic))
    compiled = openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    x = image(3, 4, 6, 8, seed=2)
    actual = [torch.from_numpy(array) for array in compiled([x.numpy()]).values()]
    assert relative_error(outputs(model, x), actual) < 1e-4


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x, m: F.interpolate(x, scale_factor=1.3, mode="bilinear"), "factor"),
        (lambda x, m: F.interpolate(x.flatten(2), scale_factor=2.0, mode="linear"), "no such operator"),
        (lambda x, m: torch.einsum("nchw,nchw,cd->nd", x, x, m), "einsum"),
        (lambda x, m: torch.einsum("nchh->nch", x[..., :6]), "einsum"),
        (lambda x, m: torch.linalg.vector_norm(x, 3, dim=1), "order 3"),
        (lambda x, m: x.max(1).indices + 0, "result 1"),
        (lambda x, m: F.adaptive_max_pool2d(x, (4, 5)), "several sizes"),
        (lambda x, m: x.reshape(-1, 2, 2, 2, 3, 8).repeat(1, 1, 1, 1, 1, 99), "99 repetitions"),
        (lambda x, m: x.repeat_interleave(2), "flattened"),
    ],
)
def test_what_is_not_modelled_is_opaque_and_computes_the_same(function, reason):
    model, x = Calls(function).eval(), image(2, 4, 6, 8)
    assert any(reason in call.reason for call in lowered(model, x).calls)
    assert_same(model, optimized(model, x), image(3, 4, 6, 8, seed=2))


def test_what_no_result_depends_on_is_not_computed():
    def function(x: Tensor, m: Tensor) -> Tensor:
        torch.cumprod(x, 1)
        return x + 1

    low = lowered(Calls(function), image(2, 4, 6, 8))
    assert not low.calls
    assert kinds(low).count("binary") == 2


def test_convolutions_around_a_prelu_are_int8():
    layers = [(nn.Conv2d(32, 32, 3, padding=1), nn.PReLU(slopes)) for slopes in (32, 1, 32)]
    model = nn.Sequential(*(part for pair in layers for part in pair)).eval()
    module = optimized(model, image(2, 32, 32, 32), cost="openvino_int8")
    assert not module.report.opaque
    assert sum(node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.PReLU)
               for node in module.graph.nodes) == 3  # fmt: skip
    assert len(deployment(module).placement.quantizers) >= 2
    assert_same(model, module, image(3, 32, 32, 32, seed=2))


@pytest.mark.parametrize("cost", ["trt_int8", "openvino_int8"])
def test_volumes_are_priced_as_convolutions(cost):
    model = nn.Sequential(
        nn.Conv3d(4, 16, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2), nn.ConvTranspose3d(16, 8, 2, 2)
    )
    module = optimized(model.eval(), image(2, 4, 4, 8, 8), cost=cost)
    assert not module.report.opaque
    assert_same(model, module, image(3, 4, 4, 8, 8, seed=2))
