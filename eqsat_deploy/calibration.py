"""Calibration batches out of files: arrays, tensors, folders of images; and random ones, good for latency only."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqsat_deploy.deployment import InputSpec
from eqsat_deploy.errors import InputError, QuantizationError

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
# Channel means and deviations of ImageNet, which torchvision's and most of timm's models were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batch = tuple[Tensor, ...]


def load_batches(
    source: str, inputs: Sequence[InputSpec], *, batch: int = 32, limit: int = 512, normalization: Any = None
) -> list[Batch]:
    """Calibration batches of at most `batch` samples, at most `limit` samples in all.

    Args:
        source: `random:N`; or an `.npy`, `.npz` (arrays by input name, or in order), `.safetensors` or `.pt` file
            (`weights_only`), samples along axis 0; or a folder of images, in order of their names.
        inputs: of the model. Values are cast to their dtypes.
        normalization: `(mean, deviation)` per channel of images scaled to 0..1, ImageNet's when missing.

    Raises:
        QuantizationError: no data there, or it does not fit the inputs.
        InputError: the source is of no known form.
    """
    kind, _, count = source.partition(":")
    path = Path(source)
    if kind == "random":
        arrays = _random(count, inputs)
    elif path.is_dir():
        arrays = (_images(path, inputs, limit, normalization or (MEAN, DEVIATION)),)
    elif path.is_file():
        arrays = _in_order(_read(path), inputs, path)
    else:
        raise QuantizationError(
            f"no calibration data at {source!r}: give an .npy, .npz, .safetensors or .pt file, a folder of images, or "
            "random:N"
        )
    sizes = {len(a) for a in arrays}
    if len(sizes) != 1 or not min(sizes):
        raise QuantizationError(
            f"{source}: every input needs the same number of samples, at least one; found {sizes}"
        )
    samples = min(sizes.pop(), limit)
    typed = [a[:samples].to(spec.dtype) for a, spec in zip(arrays, inputs, strict=True)]
    return [tuple(a[i : i + batch] for a in typed) for i in range(0, samples, batch)]


def _random(count: str, inputs: Sequence[InputSpec]) -> Batch:
    if not count.isdecimal() or not int(count):
        raise InputError(f"calibration 'random:{count}': write random:N with N samples, such as random:32")
    warnings.warn(
        "calibrating on random data: latency is real, accuracy is not; calibrate on real samples before shipping",
        stacklevel=3,
    )
    generator = torch.Generator().manual_seed(0)
    shapes = ([int(count), *(s or 1 for s in spec.shape[1:])] for spec in inputs)
    return tuple(
        torch.randn(shape, generator=generator) if spec.dtype.is_floating_point else torch.zeros(shape)
        for shape, spec in zip(shapes, inputs, strict=True)
    )


def _read(path: Path) -> Any:
    try:
        match path.suffix:
            case ".npy":
                return np.load(path, allow_pickle=False)
            case ".npz":
                with np.load(path, allow_pickle=False) as archive:
                    return dict(archive)
            case ".safetensors":
                from safetensors.torch import load_file

                return load_file(path)
            case ".pt" | ".pth":
                return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise QuantizationError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    raise InputError(f"{path}: calibration files are .npy, .npz, .safetensors or .pt, not {path.suffix!r}")


def _in_order(data: Any, inputs: Sequence[InputSpec], path: Path) -> Batch:
    """Arrays in the order of the inputs; extra arrays (labels) are left out where names or positions tell."""
    names = [spec.name for spec in inputs]
    if isinstance(data, Mapping):
        if set(names) <= set(data):
            data = [data[name] for name in names]
        elif len(data) == len(names):
            data = list(data.values())
        else:
            raise QuantizationError(f"{path}: arrays {sorted(map(str, data))} do not name the inputs {names}")
    arrays = list(data) if isinstance(data, list | tuple) else [data]
    if not all(isinstance(a, Tensor | np.ndarray) and np.ndim(a) for a in arrays):
        raise QuantizationError(f"{path}: arrays with samples along axis 0 are expected")
    if len(arrays) != len(names):
        raise QuantizationError(f"{path}: {len(arrays)} arrays for {len(names)} inputs: {', '.join(names)}")
    try:
        return tuple(torch.as_tensor(a) for a in arrays)
    except TypeError as error:
        raise QuantizationError(f"{path}: {error}") from error


def _images(folder: Path, inputs: Sequence[InputSpec], limit: int, normalization: Any) -> Tensor:
    """Images cropped to the input's proportions, resized to it, and normalized: (n, channels, height, width)."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise QuantizationError(
            f"{folder} holds images, but the model's inputs are not one image: use an .npz file"
        )
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError as error:
        raise QuantizationError("reading images needs Pillow: pip install pillow") from error
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)[:limit]
    if not files:
        raise QuantizationError(f"{folder} has no images ({', '.join(sorted(IMAGES))})")
    _, channels, height, width = (s or 1 for s in inputs[0].shape)
    if channels not in (1, 3):
        raise QuantizationError(
            f"{folder} holds images, but the model reads {channels} channels: use an .npz file"
        )
    mean, deviation = (np.resize(np.asarray(v, dtype=np.float32), channels) for v in normalization)
    arrays = []
    for file in files:
        try:
            with Image.open(file) as opened:
                image = ImageOps.fit(
                    opened.convert("L" if channels == 1 else "RGB"), (width, height), Image.Resampling.BICUBIC
                )
        except (OSError, UnidentifiedImageError) as error:
            raise QuantizationError(f"{file} is not a readable image: {error}") from error
        pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels) / 255
        arrays.append(((pixels - mean) / deviation).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(arrays))
