"""Inputs of any length, up to a largest: an engine for each of a few lengths, to the next of which inputs are padded.

On disk, a folder with an artifact for each length and `buckets.json`, written last. What they have in common is there
once: they hold the same weights, in files that are hard links of each other.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor

from eqsat_deploy import artifact
from eqsat_deploy.artifact import BUCKETS
from eqsat_deploy.calling import array_of, holds_arrays, tensor_of
from eqsat_deploy.deployment import InputSpec
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.errors import ArtifactError, InputError

AXIS = 1
"""Of inputs, behind the batch."""
MASK = "attention_mask"
"""What transformers call the input that says where something stands: ones, and zeros where it was padded."""
Named = dict[str, Any]


class Padding(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How inputs are padded, and results cut.

    Attributes:
        sizes: the lengths that there are forms for, from the shortest on.
        values: what stands behind the end of each input that has the axis, by its name.
        outputs: the axis of each leaf of the results, in the order of pytree, that is as long as the inputs; None where
            none is.
        masked: whether a mask of ones is added where the caller gives none.
    """

    sizes: tuple[int, ...]
    values: dict[str, float]
    outputs: tuple[int | None, ...]
    masked: bool

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes={list(self.sizes)}: lengths from the shortest on are expected")
        if any(axis is not None and not 0 <= axis < 64 for axis in self.outputs):
            raise ValueError(f"outputs={list(self.outputs)}: axes are expected")

    def length(self, given: Named) -> int:
        """How long the inputs are.

        Raises:
            InputError: there are none, or they disagree.
        """
        found: dict[str, int] = {
            name: given[name].shape[AXIS] for name in self.values if is_long(given.get(name))
        }
        if len(set(found.values())) != 1:
            raise InputError(f"inputs of one length are expected, not {found or list(given)}")
        return next(iter(found.values()))

    def size(self, length: int) -> int:
        """The next of `sizes`; `InputError` where all are shorter."""
        found = next((size for size in self.sizes if size >= length), None)
        if found is None:
            raise InputError(
                f"inputs of length {length}: the longest that there is an engine for is {self.sizes[-1]}"
            )
        return found

    def resized(self, given: Named, size: int) -> Named:
        """`given` padded, or cut, to `size`, with a mask."""
        if self.masked and given.get(MASK) is None:
            first = next(given[name] for name in self.values if is_long(given.get(name)))
            given = {**given, MASK: torch.ones(first.shape[:2], dtype=torch.int64, device=first.device)}
        return {
            name: resize(value, size, self.values[name]) if name in self.values and is_long(value) else value
            for name, value in given.items()
        }

    def cut(self, result: Any, length: int) -> Any:
        """`result` as long as the inputs were."""
        leaves, structure = pytree.tree_flatten(result)
        cut = [
            leaf if axis is None else leaf.narrow(axis, 0, length)
            for leaf, axis in zip(leaves, self.outputs, strict=True)
        ]
        return pytree.tree_unflatten(cut, structure)


class BucketedEngine:
    """An engine for each length, of which the shortest that inputs fit into runs them."""

    def __init__(self, padding: Padding, engines: Mapping[int, Engine]) -> None:
        self.padding = padding
        self.engines = engines
        _share(engines)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the model is, with inputs of any length up to the largest; arrays are answered with arrays.

        Raises:
            InputError: they are longer, or do not fit.
        """
        signature = self.longest.signature.call.signature
        found = called(signature, self.padding, self.engines, args, kwargs)
        return pytree.tree_map_only(Tensor, array_of, found) if holds_arrays((args, kwargs)) else found

    @property
    def longest(self) -> Engine:
        """The engine for the longest inputs."""
        return self.engines[self.padding.sizes[-1]]

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The tensors that it takes, a mask that it adds itself among them; None stands for the length, too."""
        return tuple(
            replace(spec, shape=(*spec.shape[:AXIS], None, *spec.shape[AXIS + 1 :]))
            if spec.name in self.padding.values
            else spec
            for spec in self.longest.signature.inputs
        )

    @property
    def axes(self) -> tuple[int | None, ...]:
        """Which axis of each flat output is as long as the inputs."""
        found = dict(zip(self.longest.signature.outputs, self.padding.outputs, strict=True))
        return tuple(found[place] for place in range(self.longest.signature.results))

    def check(self, tensors: Sequence[Tensor]) -> int:
        """The batch size of tensors in the order of `inputs`; `InputError` on a misfit."""
        engine, padded, _ = self._padded(tensors)
        return engine.signature.check(padded)

    def flat(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The flat outputs, as long as the inputs, for tensors in the order of `inputs`; raises as a call does."""
        engine, padded, length = self._padded(tensors)
        return [
            value if axis is None else value.narrow(axis, 0, length)
            for value, axis in zip(engine.flat(padded), self.axes, strict=True)
        ]

    def _padded(self, tensors: Sequence[Tensor]) -> tuple[Engine, list[Tensor], int]:
        inputs = self.longest.signature.inputs
        given = {spec.name: value for spec, value in zip(inputs, tensors, strict=True)}
        length = self.padding.length(given)
        size = self.padding.size(length)
        return self.engines[size], list(self.padding.resized(given, size).values()), length

    def save(self, path: str | Path, *, weights: bool = False) -> None:
        """Write a folder with an artifact for each length, with the modules' `weights` where they are asked for, and
        `buckets.json`, last.

        Raises:
            ArtifactError: it cannot be written, or something else is there.
        """
        folder = Path(path)
        check_folder(folder)
        try:
            folder.mkdir(exist_ok=True)
            (folder / BUCKETS).unlink(missing_ok=True)  # half of what is written is none
        except OSError as error:
            raise ArtifactError(f"cannot write {folder}: {error}") from error
        with tempfile.TemporaryDirectory(prefix=".buckets-", dir=folder) as private:
            files = {size: Path(private, str(size)) for size in self.engines}
            for size, engine in self.engines.items():
                files[size].mkdir()
                engine.save_files(files[size])
            next(iter(self.engines.values())).join_files(list(files.values()))
            for size, engine in self.engines.items():
                artifact.save(engine, folder / str(size), files[size], weights=weights)
        _link([folder / str(size) for size in self.engines])
        (folder / BUCKETS).write_bytes(msgspec.json.format(msgspec.json.encode(self.padding)))

    def __repr__(self) -> str:
        sizes = ", ".join(map(str, self.engines))
        return f"BucketedEngine(lengths {sizes}; {next(iter(self.engines.values()))!r})"


def check_folder(folder: Path) -> None:
    """Whether `BucketedEngine.save` can write there, as far as can be told beforehand; `ArtifactError` says why not."""
    if (
        folder.exists()
        and not (folder / BUCKETS).exists()
        and not (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise ArtifactError(f"{folder} exists and holds no {BUCKETS}: choose another path or remove it")
    if not (folder.parent.is_dir() and os.access(folder.parent, os.W_OK)):
        raise ArtifactError(f"cannot write {folder}: {folder.parent} is not a folder that can be written to")


def read_padding(folder: Path) -> Padding:
    """What `BucketedEngine.save` wrote to `folder` beside the artifacts.

    Raises:
        ArtifactError: it cannot be read.
    """
    try:
        return msgspec.json.decode((folder / BUCKETS).read_bytes(), type=Padding)
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{folder / BUCKETS} cannot be read: {error}; save it again") from error


def called(
    signature: inspect.Signature, padding: Padding, functions: Mapping[int, Any], args: Any, kwargs: Any
) -> Any:
    """What the function for the next length makes of these arguments, padded, as long as they were.

    Raises:
        InputError: they are longer than any, or do not fit the signature.
    """
    args, kwargs = pytree.tree_map_only(np.ndarray, tensor_of, (args, dict(kwargs)))
    given = named(signature, args, kwargs)
    length = padding.length(given)
    size = padding.size(length)
    return padding.cut(functions[size](**padding.resized(given, size)), length)


def named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
    """What is given to each parameter."""
    try:
        given = dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise InputError(f"{error}: call it as forward{signature}") from error
    for parameter in signature.parameters.values():
        if (
            parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY)
            and parameter.name in given
        ):
            raise InputError(f"parameter {parameter.name!r} cannot be given by name, as buckets need it")
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name, {})
    return given


def is_long(value: Any) -> bool:
    """Whether it is a tensor with an axis behind the batch."""
    return isinstance(value, Tensor) and value.dim() > AXIS


def resize(value: Tensor, size: int, filling: float) -> Tensor:
    """`value`, cut or filled up along axis 1 to `size`."""
    missing = size - value.shape[AXIS]
    if missing <= 0:
        return value.narrow(AXIS, 0, size)
    behind = [0, 0] * (value.dim() - AXIS - 1)
    return F.pad(value, [*behind, 0, missing], value=filling)


def _share(engines: Mapping[int, Engine]) -> None:
    """Give all engines the weights of all, equal ones once: what has another value for a length is named after it."""
    union: dict[str, Tensor] = {}
    for size, engine in engines.items():
        for name, value in engine.weights.items():
            if not _same(union.setdefault(name, value), value):
                union[f"{size}/{name}"] = value
    for engine in engines.values():
        engine.weights = union


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))


def _link(folders: list[Path]) -> None:
    """Keep files that are the same once, where the file system has links."""
    first: dict[str, Path] = {}
    for folder in folders:
        for name, file in artifact.read_checked(folder)[0].files.items():
            kept = first.setdefault(file.sha256, folder / name)
            if kept != folder / name:
                partial = (folder / name).with_suffix(".link")
                try:
                    os.link(kept, partial)
                    partial.replace(folder / name)
                except OSError:  # then it stays a copy
                    return
