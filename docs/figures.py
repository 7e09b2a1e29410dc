"""Makes the pictures in the explanations again: `python docs/figures.py`, which needs torchvision and matplotlib."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from torchvision.models import resnet18

from eqsat_deploy import research

PICTURES = Path(__file__).parent / "_static"


def main(folder: Path = PICTURES) -> None:
    """The head of ResNet-18 by an engine's own rules, by all rules, and that with what its forms read."""
    matplotlib.rcParams["svg.hashsalt"] = "eqsat-deploy"  # the same picture in the same bytes
    model, image = resnet18().eval(), torch.randn(1, 3, 224, 224)
    plain, found = (research.explore(model, image, cost="trt_int8", rules=r) for r in (["folding"], None))
    for name, search, depth in (("plain", plain, 1), ("chosen", found, 1), ("whole", found, 2)):
        drawing = research.inside(search, "fc").draw(depth=depth, max_forms=3)
        drawing.savefig(folder / f"resnet-head-{name}.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
