"""Inputs of any length, up to a largest: an engine for each of a few lengths, to the next of which inputs are padded.

Sizes beside the batch are fixed in a form, which is what makes it fast; so there is one for each. That padding changes
nothing is the model's to see to, by its mask: it is tried on the example inputs, cut and padded, and a difference is an
error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn

from eqsat_deploy.bucketed import AXIS, MASK, BucketedEngine, Named, Padding, called, is_long, named
from eqsat_deploy.capture import run, shared_copy
from eqsat_deploy.errors import InputError, VerificationError
from eqsat_deploy.inputs import example_arguments
from eqsat_deploy.module import OptimizedModule
from eqsat_deploy.quantization.calibrate import readings
from eqsat_deploy.verify import TOLERANCE, relative_errors
from eqsat_extraction.arguments import whole

SEQUENCE = "sequence"


@dataclass(frozen=True)
class BucketedModule:
    """A form of the model for each length: what `optimize` returns for `buckets`."""

    signature: inspect.Signature
    padding: Padding
    names: frozenset[str]
    forms: Mapping[int, OptimizedModule]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the model is, with inputs of any length up to the largest."""
        return called(self.signature, self.padding, self.forms, args, kwargs)

    def quantize(self, batches: Iterable[Any], **options: Any) -> BucketedModule:
        """Every form, calibrated on every batch, padded or cut to its length; see `OptimizedModule.quantize`."""
        given = [self._read(batch) for batch in batches]
        forms = {
            size: form.quantize([self.padding.resized(each, size) for each in given], **options)
            for size, form in self.forms.items()
        }
        return replace(self, forms=forms)

    def _read(self, batch: Any) -> Named:
        """What a batch gives to each parameter, without its labels."""
        errors = ["it has other inputs than the examples"]
        for args, kwargs in readings(batch):
            try:
                given = named(self.signature, args, kwargs)
                self.padding.length(given)
            except InputError as error:
                errors.insert(0, str(error))
                continue
            if set(given) <= self.names and all(
                map(is_long, (given[n] for n in self.padding.values if n in given))
            ):
                return given
        raise InputError(f"a batch does not fit: {errors[0]}")

    def build(self, engine: str = "auto", **options: Any) -> BucketedEngine:
        """An engine for each length; see `OptimizedModule.build`."""
        engines = {size: form.build(engine, **options) for size, form in self.forms.items()}
        return BucketedEngine(self.padding, engines)


def bucketed(
    model: Any,
    example_inputs: Any,
    buckets: Mapping[str, Sequence[int]],
    padding: Mapping[str, float],
    form: Callable[[Named], OptimizedModule],
) -> BucketedModule:
    """What `form` makes of inputs of each length in `buckets`; see `optimize`.

    Raises:
        InputError: no lengths, inputs without axis 1 or of several lengths, or a name in `padding` that is none.
        VerificationError: the model computes something else on inputs that were padded.
    """
    known = _lengths(buckets)
    if not isinstance(model, nn.Module):
        raise InputError(
            f"buckets: the sizes of this {type(model).__name__} are fixed; give the module that it is of"
        )
    signature = inspect.signature(model.forward)
    args, kwargs = example_arguments(model, example_inputs)
    given = named(signature, args, kwargs)
    values = _values(model, given, padding)
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
    forms = {size: form(found.resized(given, size)) for size in known}
    return BucketedModule(signature, found, frozenset(given) | found.values.keys(), forms)


def _lengths(buckets: Any) -> tuple[int, ...]:
    """The lengths from the shortest on."""
    sizes = buckets.get(SEQUENCE) if isinstance(buckets, Mapping) and set(buckets) == {SEQUENCE} else None
    if not isinstance(sizes, Iterable) or isinstance(sizes, str) or not (listed := list(sizes)):
        raise InputError(
            f'buckets={buckets!r}: lengths are expected, such as {{"{SEQUENCE}": [32, 64, 128]}}'
        )
    return tuple(sorted({whole("buckets", size) for size in listed}))


def _values(model: nn.Module, given: Named, padding: Mapping[str, float]) -> dict[str, float]:
    """What each input that is as long as the first is padded with."""
    tensors = {name: value for name, value in given.items() if is_long(value)}
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
