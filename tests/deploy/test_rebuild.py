from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.export import Dim

from eqsat_deploy.deployment import deployment
from eqsat_extraction.cost_models.counting import is_free
from eqsat_extraction.kernel import Kernel
from tests.support.models import (
    Aliasing,
    Attends,
    Opaque,
    PartsInPlace,
    Residual,
    Several,
    Tied,
    Transformer,
    image,
    randomized,
)  # fmt: skip
from tests.support.stages import assert_same, called, optimized


def test_names_come_from_the_original():
    result = optimized(randomized(Residual()), image())
    names = dict(result.named_parameters())
    assert {"stem.0.weight", "stem.0.bias", "conv.weight", "head.weight"} <= set(names)
    assert names["head.weight"].shape in ((5, 8), (5, 8, 1, 1))


def test_a_module_inside_a_module_with_weights_of_its_own_is_put_beside_it():
    class Nested(nn.Linear):
        def __init__(self):
            super().__init__(6, 6)
            self.extra = nn.Linear(6, 4)

        def forward(self, x):
            return self.extra(torch.tanh(super().forward(x)))

    model, x = randomized(nn.Sequential(Nested())), image(2, 6)
    module = optimized(model, x)
    assert {name for name, _ in module.named_modules()} == {"", "0", "0_extra"}
    assert_same(model, module, x)


def test_the_code_can_be_read():
    code = optimized(randomized(Residual()), image()).code
    assert "self.stem" in code
    assert "self.head" in code
    assert "constant_" not in code


def test_folded_parameters_are_evaluated_in_double_precision():
    model = randomized(Residual())
    result = optimized(model, image())
    conv, norm = model.stem[0], model.stem[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    expected = (conv.weight.double() * scale.reshape(-1, 1, 1, 1)).float()
    assert torch.equal(result.get_submodule("stem.0").weight, expected)


def test_attention_is_three_modules_under_the_names_of_the_original():
    model = randomized(Transformer(depth=1))
    result = optimized(model, image(), rules="conversions")
    kinds = called(result)
    at = kinds.index("PackedAttention")
    assert kinds[at - 1 : at + 2] == ["Linear", "PackedAttention", "Linear"]
    names = [str(n.target) for n in result.graph.nodes if n.op == "call_module"]
    assert names[at - 1 : at + 2] == [
        "blocks.0.attention.in_proj", "blocks.0.attention.attention", "blocks.0.attention.out_proj",
    ]  # fmt: skip
    assert_same(model, result, image(3, 3, 8, 8))


def test_attention_left_whole_is_attention_again():
    model = randomized(Attends("unknown"))
    result = optimized(model, image(4, 5, 8))
    assert "MultiheadAttention" in called(result)
    assert_same(model, result, image(6, 5, 8, seed=3))


@pytest.mark.parametrize(
    ("make", "example", "other"),
    [
        (Residual, image(), image(5, 3, 8, 8)),
        (Aliasing, image(2, 6), image(1, 6)),
        (PartsInPlace, image(2, 3, 8, 8), image(1, 3, 8, 8)),
        (Tied, torch.randint(0, 11, (2, 7)), torch.randint(0, 11, (5, 7))),
        (Transformer, image(), image(1, 3, 8, 8)),
        (Opaque, image(2, 6), image(7, 6)),
    ],
    ids=["residual", "aliasing", "parts", "tied", "transformer", "opaque"],
)
def test_any_batch_size_is_accepted(make, example, other):
    model = randomized(make())
    result = optimized(model, example)
    assert_same(model, result, example)
    assert_same(model, result, other)


def test_keywords_buffers_and_nested_results():
    model = randomized(Several())
    result = optimized(model, {"a": image(2, 4), "b": image(2, 3), "scale": 0.5})
    a, b = image(3, 4, seed=1), image(3, 3, seed=2)
    expected, actual = model(a, b=b, scale=0.5), result(a=a, b=b, scale=0.5)
    assert list(actual) == ["sum", "parts"]
    assert isinstance(actual["parts"], tuple)
    torch.testing.assert_close(actual, expected)


def test_tied_parameters_stay_one():
    result = optimized(randomized(Tied()), torch.randint(0, 11, (2, 7)))
    sizes = [p for p in result.parameters() if p.numel() == 66]
    assert len({p.data_ptr() for p in sizes}) == len(sizes)


def test_copies_state_and_export_survive(tmp_path):
    model = randomized(Residual())
    result = optimized(model, image())
    twin = copy.deepcopy(result)
    assert twin.report == result.report
    path = tmp_path / "state.pt"
    torch.save(result.state_dict(), path)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(torch.load(path, weights_only=True))
    assert_same(result, twin, image(4, 3, 8, 8), tolerance=0.0)
    program = torch.export.export(result, (image(),), dynamic_shapes=({0: Dim("batch")},))
    assert_same(result, program.module(), image(5, 3, 8, 8), tolerance=0.0)


def test_a_rebuilt_module_can_be_optimized_again():
    model = randomized(Residual())
    once = optimized(model, image())
    twice = optimized(once)
    assert twice.report.kernels <= once.report.kernels
    assert_same(model, twice, image(3, 3, 8, 8))


def test_an_unused_output_is_not_computed():
    class Wasteful(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    result = optimized(randomized(Wasteful()), image(2, 4))
    assert "unused.weight" not in dict(result.named_parameters())


SCRIPT = """
import hashlib, warnings
warnings.simplefilter("ignore")
import torch
torch.manual_seed(0)
from tests.support.models import Transformer, image, randomized
from tests.support.stages import optimized
result = optimized(randomized(Transformer()), image(), time_limit=None, work_limit=10_000)
digest = hashlib.sha256(result.code.encode())
for name, tensor in result.state_dict().items():
    digest.update(name.encode() + tensor.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.slow
def test_two_processes_give_the_same_bytes(request):
    root = request.config.rootpath
    paths = ":".join(str(root / p) for p in (".", "rewrites", "extraction"))
    digests = []
    for seed in ("1", "2"):
        environment = {
            "PYTHONPATH": paths,
            "PYTHONHASHSEED": seed,
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment,
                              cwd=root, check=True)  # fmt: skip
        digests.append(done.stdout.split()[-1])
    assert digests[0] == digests[1]


class Branches(nn.Module):
    """A concatenation of a pool and a convolution that a convolution reads, nested in one that a BatchNorm reads."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 1), nn.Conv2d(32, 32, 1)
        self.mixed, self.third, self.last = nn.Conv2d(64, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(96, 32, 3)
        self.norm = nn.BatchNorm2d(96)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        inner = torch.cat([nn.functional.max_pool2d(self.first(x), 3, 1, 1), torch.relu(self.second(x))], 1)
        outer = torch.cat([inner, self.third(nn.functional.pad(x, (1, 1, 1, 1)))], 1)
        return self.mixed(inner), self.last(torch.relu(self.norm(outer)))


def test_tensors_whose_codes_meet_are_placed_on_one_grid():
    placement = deployment(
        optimized(randomized(Branches()), image(2, 3, 24, 24), cost="openvino_int8")
    ).placement
    (shared,), (joined,) = placement.shared, placement.joined
    assert [len(shared), len(joined)] == [2, 3]
    assert set(shared) < set(joined)
    assert set(joined) <= {quantizer.tensor for quantizer in placement.quantizers}
    concatenations = [kernel for kernel in placement.kernels if kernel.anchor.startswith("cat")]
    assert {(kernel.precision, kernel.output) for kernel in concatenations} == {("int8", "int8")}


class Twice(nn.Module):
    """A convolution that two kernels are made of, each with an activation of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.conv(x)
        return torch.relu(y), torch.sigmoid(y) * 2


class Launches:
    """Counts kernels, those on INT8 as half of one."""

    name, unit, float_dtype, int8 = "launches", "kernels", "float32", True

    def price(self, kernel: Kernel) -> float:
        return 0.0 if is_free(kernel) else 0.5 if kernel.inputs[0].dtype == "int8" else 1.0


def test_an_anchor_that_kernels_share_is_computed_once():
    model = randomized(Twice())
    module = optimized(model, image(), cost=Launches())
    assert [node.target for node in module.graph.nodes if node.op == "call_module"] == ["conv"]
    first, second = deployment(module).placement.kernels
    assert first.anchor == second.anchor
    assert set(first.nodes) & set(second.nodes) == {first.anchor}
    assert_same(model, module, image())
    assert {first.precision, second.precision} == {"int8"}
    quantized = module.quantize([image(4, 3, 8, 8)])
    assert_same(quantized, module, image(), tolerance=0.1)
    report = quantized.build("openvino", baseline=False).report["engine"]
    assert report["not_realized"] == []
