"""An engine on data out of a file: whether it runs, and whether it computes the outputs that are there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqsat_deploy.data import arrays
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.errors import InputError
from eqsat_deploy.noise import decibels

EXPECTED = "output_"


@dataclass(frozen=True)
class Output:
    """One flat output: how far it is from what was expected (None where the data does not say), and whether it is
    finite throughout."""

    name: str
    decibels: float | None
    largest: float | None
    finite: bool

    @property
    def said(self) -> str:
        """In words."""
        if self.decibels is not None:
            return f"{self.decibels:.1f} dB, at most {self.largest:.3g} off"
        return "finite, with nothing to compare with" if self.finite else "not finite"

    def holds(self, least: float) -> bool:
        """Whether it agrees to `least` dB, or is finite where there is nothing to agree with."""
        return self.finite if self.decibels is None else self.decibels >= least


@dataclass(frozen=True)
class Trial:
    """What came of one file."""

    source: str
    samples: int
    outputs: tuple[Output, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, infinite decibels as they are."""
        return asdict(self)


def trial(engine: Engine, source: str | Path) -> Trial:
    """Run `engine` on the arrays of a file by name, such as an .npz, or on the array of its only input, samples along
    axis 0, in batches of the typical size.

    Inputs are found by their names; `output_0`, `output_1`, ... are what is expected, in the order of flat outputs, as
    the files of `export` call them. Other arrays are ignored.

    Raises:
        InputError: the file cannot be read, an input is not in it, or an array does not fit.
    """
    path = Path(source)
    signature = engine.signature
    given = _read(path, [spec.name for spec in signature.inputs])
    if missing := [spec.name for spec in signature.inputs if spec.name not in given]:
        raise InputError(f"{path} has {sorted(given)}, but no array for the input {missing[0]!r}")
    inputs = [_cast(given[spec.name], spec.dtype, f"{path}: {spec.name!r}") for spec in signature.inputs]
    wanted = {i: given[name] for i in range(signature.results) if (name := f"{EXPECTED}{i}") in given}
    batched = [
        value for spec, value in zip(signature.inputs, inputs, strict=True) if spec.shape[:1] == (None,)
    ]
    sizes = {len(value) for value in batched}
    if len(sizes) > 1:
        raise InputError(f"{path}: inputs disagree on the number of samples: {sorted(sizes)}")
    samples = sizes.pop() if sizes else 1
    if not samples:
        raise InputError(f"{path}: no samples")
    found = _run(engine, inputs, samples if batched else 0)
    outputs = []
    for index, value in enumerate(found):
        expected = torch.as_tensor(wanted[index]) if index in wanted else None
        if expected is not None and expected.shape != value.shape:
            raise InputError(
                f"{path}: {EXPECTED}{index} has shape {list(expected.shape)}, the engine's has {list(value.shape)}"
            )
        outputs.append(_output(f"{EXPECTED}{index}", value, expected))
    return Trial(str(path), samples, tuple(outputs))


def _read(path: Path, names: Sequence[str]) -> Mapping[str, Any]:
    loaded = arrays.read(path)
    if isinstance(loaded, Mapping):
        return loaded
    if len(names) != 1:
        raise InputError(
            f"{path} is one array, the inputs are {', '.join(names)}: save them by name with np.savez"
        )
    return {names[0]: loaded}


def _cast(array: Any, dtype: torch.dtype, what: str) -> Tensor:
    try:
        value = torch.as_tensor(array)
    except TypeError as error:
        raise InputError(f"{what}: {error}") from error
    if value.is_floating_point() != dtype.is_floating_point:
        raise InputError(f"{what}: {dtype} is expected, not {value.dtype}")
    return value.to(dtype)


def _run(engine: Engine, inputs: list[Tensor], samples: int) -> list[Tensor]:
    """The flat outputs over all samples; in one call where `samples` is 0."""
    if not samples:
        return [value.cpu() for value in engine.flat(inputs)]
    step = engine.signature.batch.typical
    parts = []
    for start in range(0, samples, step):
        batch = [
            value[start : start + step] if spec.shape[:1] == (None,) else value
            for spec, value in zip(engine.signature.inputs, inputs, strict=True)
        ]
        parts.append([value.cpu() for value in engine.flat(batch)])
    return [torch.cat(values) for values in zip(*parts, strict=True)]


def _output(name: str, found: Tensor, expected: Tensor | None) -> Output:
    finite = bool(torch.isfinite(found).all())
    if expected is None:
        return Output(name, None, None, finite)
    off = (found.double() - expected.double()).abs().nan_to_num(inf)
    return Output(name, decibels(expected, found), float(off.max()) if off.numel() else 0.0, finite)
