"""Inputs of any length, up to a largest: an engine for each of a few lengths, to the next of which inputs are padded.

Sizes beside the batch are fixed in a form, which is what makes it fast; so there is one for each. That padding changes
nothing is the model's to see to, by its mask: it is tried on the example inputs, cut and padded, and a difference is an
error.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, nn

from eqsat_deploy.calling import arguments
from eqsat_deploy.capture import run, shared_copy
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.errors import ArtifactError, InputError, VerificationError
from eqsat_deploy.loading import load
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.optimizer import optimize
from eqsat_deploy.quantization.calibrate import readings
from eqsat_deploy.verify import TOLERANCE, relative_errors
from eqsat_extraction.arguments import checked, whole

AXIS = 1
"""Of inputs, behind the batch."""
MASK = "attention_mask"
"""What transformers call the input that says where something stands: ones, and zeros where it was padded."""
FILE = "buckets.json"
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
            name: given[name].shape[AXIS] for name in self.values if _long(given.get(name))
        }
        if len(set(found.values())) != 1:
            raise InputError(f"inputs of one length are expected, not {found or list(given)}")
        return next(iter(found.values()))

    def resized(self, given: Named, size: int) -> Named:
        """`given` padded, or cut, to `size`, with a mask."""
        if self.masked and given.get(MASK) is None:
            first = next(given[name] for name in self.values if _long(given.get(name)))
            given = {**given, MASK: torch.ones(first.shape[:2], dtype=torch.int64, device=first.device)}
        return {
            name: resize(value, size, self.values[name]) if name in self.values and _long(value) else value
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


@dataclass(frozen=True)
class BucketedModule:
    """A form of the model for each length; what `optimize` returns for one."""

    signature: inspect.Signature
    padding: Padding
    names: frozenset[str]
    forms: Mapping[int, OptimizedModule]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the model is, with inputs of any length up to the largest."""
        return _called(self.signature, self.padding, self.forms, args, kwargs)

    def quantize(self, batches: Iterable[Any], **options: Any) -> BucketedModule:
        """Every form, calibrated on every batch, padded or cut to its length; see `OptimizedModule.quantize`."""
        named = [self._read(batch) for batch in batches]
        forms = {
            size: form.quantize([self.padding.resized(each, size) for each in named], **options)
            for size, form in self.forms.items()
        }
        return replace(self, forms=forms)

    def _read(self, batch: Any) -> Named:
        """What a batch gives to each parameter, without its labels."""
        errors = ["it has other inputs than the examples"]
        for args, kwargs in readings(batch):
            try:
                given = _named(self.signature, args, kwargs)
                self.padding.length(given)
            except InputError as error:
                errors.insert(0, str(error))
                continue
            if set(given) <= self.names and all(
                map(_long, (given[n] for n in self.padding.values if n in given))
            ):
                return given
        raise InputError(f"a batch does not fit: {errors[0]}")

    def build(self, engine: str = "auto", **options: Any) -> BucketedEngine:
        """An engine for each length; see `OptimizedModule.build`."""
        engines = {size: form.build(engine, **options) for size, form in self.forms.items()}
        _share(list(engines.values()))
        return BucketedEngine(self.padding, engines)


class BucketedEngine:
    """An engine for each length, of which the shortest that inputs fit into runs them."""

    def __init__(self, padding: Padding, engines: Mapping[int, Engine]) -> None:
        self.padding = padding
        self.engines = engines

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the model is, with inputs of any length up to the largest.

        Raises:
            InputError: they are longer, or do not fit.
        """
        signature = next(iter(self.engines.values())).signature.call.signature
        return _called(signature, self.padding, self.engines, args, kwargs)

    def save(self, path: str | Path) -> None:
        """Write a folder with an artifact for each length, and `buckets.json`, last.

        Raises:
            ArtifactError: it cannot be written, or something else is there.
        """
        folder = Path(path)
        try:
            folder.mkdir(exist_ok=True)
            if any(folder.iterdir()) and not (folder / FILE).exists():
                raise ArtifactError(f"{folder} exists and holds no {FILE}: choose another path or remove it")
            (folder / FILE).unlink(missing_ok=True)  # half of what is written is none
        except OSError as error:
            raise ArtifactError(f"cannot write {folder}: {error}") from error
        for size, engine in self.engines.items():
            engine.save(folder / str(size))
        (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(self.padding)))


@checked
def load_buckets(path: str | Path) -> BucketedEngine:
    """The engine that `BucketedEngine.save` wrote to `path`.

    Raises:
        ArtifactError: there is none, or one of its artifacts does not load; see `load`.
    """
    folder = Path(path)
    try:
        padding = msgspec.json.decode((folder / FILE).read_bytes(), type=Padding)
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{folder / FILE} cannot be read: {error}; save it again") from error
    engines = {size: load(folder / str(size)) for size in padding.sizes}
    for size, engine in engines.items():
        long = {spec.name for spec in engine.signature.inputs if spec.shape[AXIS : AXIS + 1] == (size,)}
        if not set(padding.values) <= long or engine.signature.call.outputs.num_leaves != len(
            padding.outputs
        ):
            raise ArtifactError(f"{folder / FILE} is not of the engine in {size}/; save it again")
    _share(list(engines.values()))
    return BucketedEngine(padding, engines)


@checked
def optimize_buckets(
    model: nn.Module,
    example_inputs: Any,
    sizes: Sequence[int],
    *,
    padding: Mapping[str, float] | None = None,
    **options: Any,
) -> BucketedModule:
    """A form of `model` for each of `sizes`, the lengths of its inputs along axis 1.

    Tokens are padded with the model's own (`config.pad_token_id`), everything else with zeros, the mask too. A model
    whose forward takes an `attention_mask` gets one, of ones, wherever the caller gives none.

    Args:
        model: see `optimize`.
        example_inputs: real ones of one length; a tensor, a tuple of arguments or a dict of them.
        sizes: lengths; inputs longer than the largest are refused.
        padding: other values to pad with, by the names of forward's parameters.
        options: of `optimize`.

    Raises:
        InputError: no sizes, inputs without axis 1 or of several lengths, or a name in `padding` that is none.
        VerificationError: the model computes something else on inputs that were padded.
    """
    known = tuple(sorted({whole("sizes", size) for size in sizes}))
    if not known:
        raise InputError("sizes=[]: lengths are expected, such as [32, 64, 128]")
    signature = inspect.signature(model.forward)
    args, kwargs = arguments(example_inputs)
    given = _named(signature, args, kwargs)
    values = _values(model, given, padding or {})
    masked = MASK in signature.parameters and MASK not in values
    if masked:
        values[MASK] = 0.0
    plain = Padding(known, values, (), masked)
    if (length := plain.length(given)) < 2:
        raise InputError("example inputs of length 1 do not show which results are as long: give longer ones")
    copied = shared_copy(model).eval()
    outputs = _axes(length, *(run(copied, (), plain.resized(given, size)) for size in (length - 1, length)))
    found = Padding(known, values, outputs, masked)
    for cut, size in _trials(known, length):
        _check(copied, found, found.resized(given, cut), cut, size)
    forms = {size: optimize(model, found.resized(given, size), **options) for size in known}
    return BucketedModule(signature, found, frozenset(given) | found.values.keys(), forms)


def _long(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > AXIS


def resize(value: Tensor, size: int, filling: float) -> Tensor:
    """`value`, cut or filled up along axis 1 to `size`."""
    missing = size - value.shape[AXIS]
    if missing <= 0:
        return value.narrow(AXIS, 0, size)
    behind = [0, 0] * (value.dim() - AXIS - 1)
    return F.pad(value, [*behind, 0, missing], value=filling)


def _called(
    signature: inspect.Signature, padding: Padding, functions: Mapping[int, Any], args: Any, kwargs: Any
) -> Any:
    given = _named(signature, args, kwargs)
    length = padding.length(given)
    size = next((size for size in padding.sizes if size >= length), None)
    if size is None:
        raise InputError(
            f"inputs of length {length}: the longest that there is an engine for is {padding.sizes[-1]}"
        )
    return padding.cut(functions[size](**padding.resized(given, size)), length)


def _named(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Named:
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


def _values(model: nn.Module, given: Named, padding: Mapping[str, float]) -> dict[str, float]:
    """What each input that is as long as the first is padded with."""
    tensors = {name: value for name, value in given.items() if _long(value)}
    if not tensors:
        raise InputError("buckets need inputs with an axis behind the batch: [batch, length, ...]")
    length = next(iter(tensors.values())).shape[AXIS]
    long = [name for name, value in tensors.items() if value.shape[AXIS] == length]
    if unknown := [name for name in padding if name not in (*long, MASK)]:
        raise InputError(f"padding: {unknown[0]!r} is none of the inputs {', '.join(long)}")
    token = getattr(getattr(model, "config", None), "pad_token_id", None)
    main = getattr(model, "main_input_name", "input_ids")
    own = {main: float(token)} if token is not None and main in long else {}
    return {**dict.fromkeys(long, 0.0), **own, **padding}


def _axes(length: int, short: Any, long: Any) -> tuple[int | None, ...]:
    """Which axis of each result is as long as the inputs, from results for one less than `length`, and for that."""
    found: list[int | None] = []
    for a, b in zip(pytree.tree_leaves(short), pytree.tree_leaves(long), strict=True):
        longer = [
            axis
            for axis, (m, n) in enumerate(zip(getattr(a, "shape", ()), getattr(b, "shape", ()), strict=True))
            if m != n
        ]
        if len(longer) > 1 or (longer and b.shape[longer[0]] != length):
            raise InputError(
                f"a result has shape {list(b.shape)} for inputs of length {length} and {list(a.shape)} for one less: "
                "only results with one axis as long as the inputs can be cut"
            )
        found.append(longer[0] if longer else None)
    return tuple(found)


def _trials(sizes: Sequence[int], length: int) -> Iterator[tuple[int, int]]:
    """Lengths that the example inputs are cut to, and sizes that these are padded to."""
    for size in sizes:
        most = min(length, size)
        for cut in sorted({max(1, most // 2), most, max(1, size - 1) if size <= length else most}):
            if cut < size:
                yield cut, size


def _check(model: nn.Module, padding: Padding, given: Named, length: int, size: int) -> None:
    expected = run(model, (), given)
    found = padding.cut(run(model, (), padding.resized(given, size)), length)
    wanted, got = (
        [v for v in pytree.tree_leaves(each) if isinstance(v, Tensor)] for each in (expected, found)
    )
    errors = relative_errors(wanted, got)
    if any(error > TOLERANCE.get(value.dtype, 0.0) for error, value in zip(errors, wanted, strict=True)):
        raise VerificationError(
            f"inputs of length {length} padded to {size} change what the model computes (relative error "
            f"{max(errors):.1e}): it needs a mask among its inputs ({MASK}), or padding= with values that it ignores"
        )


def _share(engines: Sequence[Engine]) -> None:
    """Keep equal weights once."""
    kept: Mapping[str, Tensor] = engines[0].weights
    for engine in engines[1:]:
        engine.weights = {
            name: kept[name] if name in kept and _same(kept[name], value) else value
            for name, value in engine.weights.items()
        }


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)
