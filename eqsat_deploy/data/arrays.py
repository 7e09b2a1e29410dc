"""Arrays out of files, and random ones, which are good for latency only."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from eqsat_deploy.calling import InputSpec
from eqsat_deploy.errors import InputError
from eqsat_deploy.inputs import draw_integers
from eqsat_extraction.cautions import caution

Batch = tuple[Tensor, ...]

UNREADABLE = (
    OSError, ValueError, TypeError, EOFError, RuntimeError, pickle.UnpicklingError, BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy, zip files, safetensors and torch raise of files that are damaged or of another kind."""


def samples(source: str) -> int:
    """The N of `random:N`; `InputError` where it is none."""
    count = source.partition(":")[2]
    if not count.isdecimal() or not int(count):
        raise InputError(f"calibration {source!r}: write random:N with N samples, such as random:32")
    return int(count)


def random(count: int, inputs: Sequence[InputSpec], function: Callable[..., Any] | None) -> Batch:
    """Normal numbers, and integers that `function` accepts; a warning says what they are not good for."""
    caution(
        "calibrating on random data: latency is real, accuracy is not; calibrate on real samples before shipping"
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


def read(path: Path) -> Any:
    """An array, or several by name or in order, of a file without pickles.

    Raises:
        InputError: it cannot be read, or is of no known form.
    """
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
    except UNREADABLE as error:
        raise InputError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    what = "a folder" if path.is_dir() else repr(path.suffix)
    raise InputError(f"{path}: an array file is .npy, .npz, .safetensors or .pt, not {what}")


def in_order(data: Any, inputs: Sequence[InputSpec], path: Path) -> Batch:
    """Arrays in the order of the inputs; extra arrays (labels) are left out where names or positions tell."""
    names = [spec.name for spec in inputs]
    if isinstance(data, Mapping):
        if set(names) <= set(data):
            data = [data[name] for name in names]
        elif len(data) == len(names):
            data = list(data.values())
        else:
            raise InputError(f"{path}: arrays {sorted(map(str, data))} do not name the inputs {names}")
    arrays = list(data) if isinstance(data, list | tuple) else [data]
    if not all(isinstance(a, Tensor | np.ndarray) and np.ndim(a) for a in arrays):
        raise InputError(f"{path}: arrays with samples along axis 0 are expected")
    if len(arrays) != len(names):
        raise InputError(f"{path}: {len(arrays)} arrays for {len(names)} inputs: {', '.join(names)}")
    try:
        return tuple(torch.as_tensor(a) for a in arrays)
    except TypeError as error:
        raise InputError(f"{path}: {error}") from error


def batched(source: str, arrays: Batch, inputs: Sequence[InputSpec], batch: int, limit: int) -> list[Batch]:
    """At most `limit` samples of the arrays, in the dtypes of the inputs, `batch` of them at a time.

    Raises:
        InputError: there are none, or not as many of each.
    """
    sizes = {len(a) for a in arrays}
    if len(sizes) != 1 or not min(sizes):
        raise InputError(
            f"{source}: every input needs the same number of samples, at least one; found {sizes}"
        )
    count = min(sizes.pop(), limit)
    typed = [a[:count].to(spec.dtype) for a, spec in zip(arrays, inputs, strict=True)]
    return [tuple(a[i : i + batch] for a in typed) for i in range(0, count, batch)]
