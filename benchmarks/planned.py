"""Whether what is planned is what runs: kernels whose precision in the engine is that which extraction chose.

    python -m benchmarks.planned --json benchmarks/results/planned.json
    python -m benchmarks.planned --models torchvision:resnet50 small:additions

Every model is optimized for OpenVINO, quantized and built, random weights re-randomized; nothing is timed. The rows
have kernels planned and run in INT8, those that departed, and those that no layer of the engine says to be its own
(several kernels that became one). The exit status is 1 where fewer than 97 % of the kernels seen run as planned.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks._models import inputs, load, rerandomize
from benchmarks.zoo import isolated, versions
from eqsat_deploy import optimize
from eqsat_deploy.deployment import deployment
from eqsat_deploy.engines.base import realized
from eqsat_deploy.engines.openvino import OpenVINOEngine

NAMES = (
    "squeezenet1_1", "shufflenet_v2_x1_0", "mobilenet_v2", "mobilenet_v3_large", "regnet_y_400mf", "efficientnet_b0",
    "resnet50", "googlenet", "densenet121", "inception_v3", "convnext_tiny", "swin_t", "vit_b_16",
)  # fmt: skip
TIMM = ("repvgg_a0", "mobileone_s0", "deit_tiny_patch16_224")
SHARE = 0.97
FIXED = 224  # of models that take no other side


class Upwards(nn.Module):
    """Transposed convolutions of several windows, with and without groups, between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        windows = ((2, 2, 0, 0, 1), (3, 2, 1, 1, 1), (4, 2, 1, 0, 1), (4, 2, 1, 0, 8), (3, 1, 1, 0, 1),
                   (4, 4, 0, 0, 1), (1, 2, 0, 1, 1))  # fmt: skip
        layers = []
        for kernel, stride, padding, more, groups in windows:
            layers += [nn.ConvTranspose2d(32, 32, kernel, stride, padding, more, groups), nn.ReLU(),
                       nn.Conv2d(32, 32, 3, 2 if stride == 2 else 1, 1), nn.ReLU()]  # fmt: skip
        self.stem, self.layers = nn.Conv2d(3, 32, 3, 2, 1), nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.relu(self.stem(x)))


class Additions(nn.Module):
    """Sums of three and four convolutions, of which some are read again."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.parts = nn.ModuleList(nn.Conv2d(32, 32, 3, 1, 1) for _ in range(6))
        self.last = nn.Conv2d(32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        a, b, c, d, e, f = (part(x) for part in self.parts)
        first = torch.relu(a + b + c)
        second = torch.relu(first + d + e + x)
        return self.last(second + first + f)


class Normed(nn.Module):
    """Convolutions under weight_norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            weight_norm(nn.Conv2d(3, 32, 3, 2, 1)), nn.ReLU(), weight_norm(nn.Conv2d(32, 64, 3, 1, 1)), nn.ReLU(),
            weight_norm(nn.Conv2d(64, 64, 1)), nn.ReLU(), nn.Conv2d(64, 32, 3, 1, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Joined(nn.Module):
    """Max-pools, average pools, convolutions, a depthwise one and a BatchNorm after concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2, 1)
        self.one, self.two, self.three = (nn.Conv2d(32, 32, k, 1, k // 2) for k in (1, 3, 5))
        self.mixed, self.depthwise = nn.Conv2d(96, 32, 1), nn.Conv2d(64, 64, 3, 1, 1, groups=64)
        self.norm, self.last = nn.BatchNorm2d(96), nn.Conv2d(96, 32, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        parts = [torch.relu(self.one(x)), self.two(x), torch.sigmoid(self.three(x))]
        joined = nn.functional.max_pool2d(torch.cat(parts, 1), 3, 2, ceil_mode=True)
        y = torch.relu(self.mixed(joined))
        z = self.depthwise(torch.cat([y, nn.functional.avg_pool2d(y, 3, 1, 1)], 1))
        return self.last(torch.relu(self.norm(torch.cat([y, z], 1))))


SMALL = {"transposed": Upwards, "additions": Additions, "weight_norm": Normed, "joined": Joined}
MODELS = (
    *(f"small:{name}" for name in SMALL), *(f"torchvision:{name}" for name in NAMES),
    *(f"timm:{name}" for name in TIMM),
)  # fmt: skip


def survey(spec: str, *, side: int, threads: int) -> dict[str, Any]:
    """One model in this process: its row."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    source, _, name = spec.partition(":")
    torch.manual_seed(0)
    model = rerandomize(SMALL[name]() if source == "small" else load(spec)).eval()
    example = inputs(spec, 0, model, side)
    if example is None:
        example = torch.randn(2, 3, FIXED, FIXED, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(example.shape, generator=generator) for _ in range(2)]
    module = optimize(model, example, cost="openvino_int8", check=False).quantize(batches, effort="fast")
    layers = OpenVINOEngine.build(module).layers(example[:1])
    kernels = deployment(module).placement.kernels
    ran = realized(kernels, layers)
    departed = [
        {"kernel": kernel.anchor, "nodes": len(kernel.nodes), "planned": kernel.precision, "writes": kernel.output,
         "ran": ran[kernel.anchor]}
        for kernel in kernels if ran[kernel.anchor] not in (kernel.precision, None)
    ]  # fmt: skip
    return {
        "model": spec, "status": "ok", "kernels": len(kernels),
        "int8": sum(kernel.precision == "int8" for kernel in kernels),
        "seen": sum(found is not None for found in ran.values()), "departed": departed,
        "unseen": [anchor for anchor, found in ran.items() if found is None],
        "other_layers": sorted(f"{la.type} {la.precision}" for la in layers if not la.nodes),
    }  # fmt: skip


def main() -> int:
    """Command line; exits with 1 where too little runs as planned."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=MODELS, help="SPECs, and small:NAME")
    parser.add_argument("--json", type=Path, help="where the rows go; rewritten after every model")
    parser.add_argument("--side", type=int, default=128, help="height and width of images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds per model")
    arguments = parser.parse_args()
    work = partial(survey, side=arguments.side, threads=arguments.threads)
    rows = []
    for spec in arguments.models:
        row = isolated(work, spec, timeout=arguments.timeout)
        rows.append(row)
        if row["status"] == "ok":
            as_planned = row["seen"] - len(row["departed"])
            print(f"{spec:<35} {row['kernels']:>4} kernels, {row['int8']:>4} INT8; {as_planned} of {row['seen']} seen "
                  f"run as planned; {row['wall_seconds']:.0f} s", flush=True)  # fmt: skip
            for kernel in row["departed"]:
                print(f"    {kernel}", flush=True)
        else:
            print(f"{spec:<35} {row['status']} {row.get('error', '')}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps({"rows": rows, "versions": versions()}, indent=1) + "\n")
    built = [row for row in rows if row["status"] == "ok"]
    seen = sum(row["seen"] for row in built)
    held = seen - sum(len(row["departed"]) for row in built)
    print(f"{held} of {seen} kernels, {held / max(seen, 1):.1%}, run as planned")
    return int(len(built) < len(rows) or held < SHARE * seen)


if __name__ == "__main__":
    sys.exit(main())
