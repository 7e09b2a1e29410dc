"""A folder of images, prepared as the model's library prepares them, or as it is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqsat_deploy.data.reading import Reading, read_each
from eqsat_deploy.errors import InputError
from eqsat_deploy.specs import library
from eqsat_extraction.cautions import caution

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
# Channel means and deviations of ImageNet, which torchvision's and most of timm's models were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Size = tuple[int, int, int]
"""Channels, height and width."""


@dataclass(frozen=True)
class Transform:
    """From an image of Pillow, in colour or in grey, to a tensor (channels, height, width) float32."""

    channels: int
    apply: Callable[[Any], Tensor]


def image_files(folder: Path) -> list[Path]:
    """Images in `folder` and below, in order of their names.

    Raises:
        InputError: there are none, or Pillow is not installed.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)
    if not files:
        raise InputError(f"{folder} has no images ({', '.join(sorted(IMAGES))})")
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise InputError("reading images needs Pillow: pip install pillow") from error
    return files


def read_images(folder: Path, model: Any, size: Size | None, reading: Reading, limit: int) -> Tensor:
    """At most `limit` images as one tensor (n, channels, height, width), of `size` where that is given.

    Raises:
        InputError: an image cannot be read, or one has another size than the others or than is expected.
    """
    files = image_files(folder)
    transform = transform_for(model, size, reading)

    def read(file: Path) -> Tensor:
        from PIL import Image

        with Image.open(file) as opened:
            return transform.apply(opened.convert("L" if transform.channels == 1 else "RGB"))

    found = read_each(files, read, str, reading.skip_bad, limit)
    wanted = size or tuple(found[0].shape)
    other = next((list(image.shape) for image in found if tuple(image.shape) != wanted), None)
    if other is not None:
        raise InputError(
            f"{folder}: the model's own preprocessing makes an image {other}, where {list(wanted)} is "
            "expected; image_size= (--image-size HEIGHTxWIDTH) says what all are resized to"
        )
    return torch.stack(found)


def transform_for(model: Any, size: Size | None, reading: Reading) -> Transform:
    """How images are prepared for `model`, to `size` where that is given.

    In this order: as `reading` says; as timm does for a model with a `pretrained_cfg`; as torchvision does for the
    weights that it publishes under the name in `reading.spec`; cropped, resized, and normalized as for ImageNet.

    Raises:
        InputError: nothing says how large the images are.
    """
    if (reading.image_size, reading.mean, reading.deviation) == (None, None, None):
        for own in (_timm, _torchvision):
            if (found := own(model, size, reading)) is not None:
                return found
    channels = size[0] if size is not None else 3
    shape = reading.image_size or (size and size[1:])
    if shape is None:
        raise InputError(
            "nothing says how large the model's images are: image_size= (--image-size HEIGHTxWIDTH) does"
        )
    if (reading.mean, reading.deviation) == (None, None):
        caution(
            "nothing says how the model's images are normalized: taking ImageNet's mean and deviation; mean= and "
            "deviation= (--mean, --std) are others"
        )
    return _fitted((channels, *shape), reading.mean or MEAN, reading.deviation or DEVIATION)


def _timm(model: Any, size: Size | None, reading: Reading) -> Transform | None:
    if not getattr(model, "pretrained_cfg", None):
        return None
    timm = library("timm").data
    config = timm.resolve_data_config({} if size is None else {"input_size": size}, model=model)
    return Transform(config["input_size"][0], timm.create_transform(**config))


def _torchvision(model: Any, size: Size | None, reading: Reading) -> Transform | None:
    source, _, name = reading.spec.rpartition(":")
    if source != "torchvision":
        return None
    make = library("torchvision").models.get_model_weights(name).DEFAULT.transforms
    preset = make()
    crop = getattr(preset, "crop_size", None)
    if size is None or crop is None or list(size[1:]) == [*crop, *crop][:2]:
        return Transform(3, preset)
    if size[1] == size[2]:
        resized = round(preset.resize_size[0] * size[1] / crop[0])
        return Transform(3, make(crop_size=size[1], resize_size=resized))
    return _fitted(size, preset.mean, preset.std)


def _fitted(size: Size, mean: Any, deviation: Any) -> Transform:
    """Images cropped around their centre to the proportions of `size`, resized to it, and normalized."""
    channels, height, width = size
    if channels not in (1, 3):
        raise InputError(f"the model reads {channels} channels, images have 1 or 3: use an .npz file")
    for name, values in (("mean", mean), ("std", deviation)):
        if len(values) not in (1, channels) and channels != 1:
            raise InputError(f"{name}: {len(values)} numbers for {channels} channels")
    center, scale = (np.resize(np.asarray(v, dtype=np.float32), channels) for v in (mean, deviation))

    def apply(image: Any) -> Tensor:
        from PIL import Image, ImageOps

        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(fitted, dtype=np.float32).reshape(height, width, channels) / 255
        return torch.from_numpy(((pixels - center) / scale).transpose(2, 0, 1))

    return Transform(channels, apply)
