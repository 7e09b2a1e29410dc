"""Calibration batches out of files: arrays, tensors, folders of images; and random ones, good for latency only."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, fx

from eqsat_deploy.calling import InputSpec
from eqsat_deploy.errors import InputError, QuantizationError
from eqsat_deploy.inputs import draw_integers

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm"})
# Channel means and deviations of ImageNet, which torchvision's and most of timm's models were trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Batch = tuple[Tensor, ...]


def check_source(source: str) -> None:
    """Check what can be known of calibration data before there is a module to calibrate.

    Raises:
        InputError: the source is of no known form.
        QuantizationError: nothing is there, it cannot be read, or a folder has no images.
    """
    path = Path(source)
    if source.partition(":")[0] == "random":
        _samples(source)
    elif path.is_dir():
        _image_files(path)
    elif path.is_file():
        _read(path)
    else:
        raise QuantizationError(
            f"no calibration data at {source!r}: give an .npy, .npz, .safetensors or .pt file, a folder of images, or "
            "random:N"
        )


def load_batches(
    source: str,
    inputs: Sequence[InputSpec],
    *,
    batch: int = 32,
    limit: int = 512,
    normalization: Any = None,
    module: fx.GraphModule | None = None,
) -> list[Batch]:
    """Calibration batches of at most `batch` samples, at most `limit` samples in all.

    Args:
        source: `random:N`; or an `.npy`, `.npz` (arrays by input name, or in order), `.safetensors` or `.pt` file
            (`weights_only`), samples along axis 0; or a folder of images, in order of their names.
        inputs: of the model. Values are cast to their dtypes.
        normalization: `(mean, deviation)` per channel of images scaled to 0..1, ImageNet's when missing.
        module: what random integers are drawn for: over the rows of the tables that it looks them up in.

    Raises:
        QuantizationError: no data there, or it does not fit the inputs.
        InputError: the source is of no known form.
    """
    path = Path(source)
    if source.partition(":")[0] == "random":
        arrays = _random(_samples(source), inputs, None if module is None else module.forward)
    elif path.is_dir():
        arrays = (_images(path, inputs, limit, normalization or (MEAN, DEVIATION)),)
    else:
        check_source(source)
        arrays = _in_order(_read(path), inputs, path)
    sizes = {len(a) for a in arrays}
    if len(sizes) != 1 or not min(sizes):
        raise QuantizationError(
            f"{source}: every input needs the same number of samples, at least one; found {sizes}"
        )
    samples = min(sizes.pop(), limit)
    typed = [a[:samples].to(spec.dtype) for a, spec in zip(arrays, inputs, strict=True)]
    return [tuple(a[i : i + batch] for a in typed) for i in range(0, samples, batch)]


def _samples(source: str) -> int:
    count = source.partition(":")[2]
    if not count.isdecimal() or not int(count):
        raise InputError(f"calibration {source!r}: write random:N with N samples, such as random:32")
    return int(count)


def _random(count: int, inputs: Sequence[InputSpec], function: Callable[..., Any] | None) -> Batch:
    warnings.warn(
        "calibrating on random data: latency is real, accuracy is not; calibrate on real samples before shipping",
        stacklevel=3,
    )
    generator = torch.Generator().manual_seed(0)
    shapes = ([count, *(s or 1 for s in spec.shape[1:])] for spec in inputs)
    arrays = tuple(
        torch.randn(shape, generator=generator).to(spec.dtype)
        if spec.dtype.is_floating_point
        else torch.zeros(shape, dtype=spec.dtype)
        for shape, spec in zip(shapes, inputs, strict=True)
    )
    return arrays if function is None else draw_integers(function, (arrays, {}))[0]


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
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError, BadZipFile) as error:
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


def _image_files(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGES)
    if not files:
        raise QuantizationError(f"{folder} has no images ({', '.join(sorted(IMAGES))})")
    return files


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
    files = _image_files(folder)[:limit]
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
