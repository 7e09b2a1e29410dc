"""Calibration batches, read once and checked, through the modules that watch them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from eqsat_deploy.calling import Arguments, CallSpec, InputSpec, arguments, batch_size
from eqsat_deploy.deployment import samples_of
from eqsat_deploy.errors import InputError, QuantizationError
from eqsat_extraction.cautions import caution

SAMPLE = 32
"""How many samples are held while quantizing, for what one pass over the data cannot tell."""

GREAT = 2**16
"""Values in a sample of which half as many show as much: images have places by the thousand (MobileNetV2 and two of
EfficientNet-Lite, two sets of data each: KL 0.065, 0.060 and 0.038 with all, 0.067, 0.060 and 0.038 with half)."""

FEW = 16
"""Fewer samples than this are said to be few: what they have not shown is clipped."""

HUGE = 1e6
"""No normalized input is as great."""

Watch = Callable[[tuple[Tensor, ...]], None]
"""Is shown a batch, its inputs in the order of the placeholders."""

LABELS = frozenset({"label", "labels", "label_ids", "target", "targets"})
"""What data loaders call labels in batches by name."""


def calibrate(
    watch: Watch,
    device: torch.device,
    call: CallSpec,
    batches: Iterable[Any],
    keep: int,
    *,
    without_sample: bool,
) -> tuple[Tensor, ...]:
    """Show every batch, once, to `watch`; the first `keep` samples of all, in one batch.

    Those of them that are `enough` are not shown where it is to be `without_sample`.

    An interruption (`KeyboardInterrupt`) ends the data: what was read before stays, with a warning.

    Raises:
        QuantizationError: no batches, or one that does not fit `call` or has NaN or infinity, by its number.
    """
    count, held, ranges = 0, Held(call.inputs, keep), _Ranges(call.inputs)
    try:
        with torch.no_grad():
            for inputs in _read(batches, call):
                inputs = tuple(value.to(device) for value in inputs)
                left = enough(SAMPLE, call.inputs, inputs) - held.count if without_sample else 0
                if (shown := _beyond(call.inputs, inputs, max(left, 0))) is not None:
                    watch(shown)
                held.add(inputs)
                ranges.add(inputs)
                count += 1
    except KeyboardInterrupt:
        if count == 0:
            raise
        caution(f"interrupted: calibrated on the first {count} batches")
    if count == 0:
        raise QuantizationError(
            "no calibration batches: pass an iterable of inputs (a generator is used up after one pass)"
        )
    ranges.warn()
    return held.joined()


def _beyond(specs: Sequence[InputSpec], inputs: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...] | None:
    """A batch without its first `count` samples; None where none is left."""
    if count == 0:
        return inputs
    samples = batch_size(specs, inputs)
    if samples is None or samples <= count:
        return None
    return tuple(
        value if spec.batch_axis is None else value.narrow(spec.batch_axis, count, samples - count)
        for spec, value in zip(specs, inputs, strict=True)
    )


def enough(count: int, specs: Sequence[InputSpec], inputs: Sequence[Tensor]) -> int:
    """How many samples, of which `inputs` is a batch, show as much as `count` small ones do."""
    samples = batch_size(specs, inputs) or 1
    return count // 2 if max(value.numel() for value in inputs) >= GREAT * samples else count


def channels_last(values: Tensor) -> Tensor:
    """Images as convolutions are fastest on them."""
    return values.contiguous(memory_format=torch.channels_last) if values.dim() == 4 else values


def _read(batches: Any, call: CallSpec) -> Iterator[tuple[Tensor, ...]]:
    """The tensors of every batch, finite ones."""
    for number, batch in enumerate(_iterable(batches), 1):
        try:
            inputs = read_batch(batch, call)
        except InputError as error:
            raise QuantizationError(f"calibration batch {number}: {error}") from error
        for spec, value in zip(call.inputs, inputs, strict=True):
            if not torch.isfinite(value).all():
                raise QuantizationError(
                    f"calibration batch {number}: {spec.name!r} has NaN or infinite values"
                )
        yield inputs


def _iterable(batches: Any) -> Iterable[Any]:
    if isinstance(batches, Mapping) or not isinstance(batches, Iterable):
        raise QuantizationError(
            f"batches: an iterable of batches is expected, such as a list or a DataLoader, not {type(batches).__name__}"
        )
    return batches


def read_batch(batch: Any, call: CallSpec) -> tuple[Tensor, ...]:
    """The tensors of a batch in the model's own structure, or of a pair of one and labels, in the order of `inputs`.

    Raises:
        InputError: it does not fit, with labels or without.
    """
    errors: list[str] = []
    for args, kwargs in readings(batch):
        try:
            tensors = call.flatten(args, kwargs)
            batch_size(call.inputs, tensors)
        except InputError as error:
            errors.append(str(error))
        else:
            return tensors
    raise InputError("; or without its labels: ".join(dict.fromkeys(errors)))


def readings(batch: Any) -> Iterator[Arguments]:
    """What a batch may mean, as it is first: the arguments, then what is left of them without labels."""
    yield arguments(batch, "it")
    if isinstance(batch, Mapping):
        unlabelled = {name: value for name, value in batch.items() if name not in LABELS}
        if len(unlabelled) < len(batch):
            yield (), unlabelled
    elif not isinstance(batch, Tensor) and len(batch) > 1:
        inputs = tuple(batch[:-1])
        nested = len(inputs) == 1 and isinstance(inputs[0], Mapping | tuple | list)
        # (arguments, labels), where the arguments are no single one that is nested
        yield arguments(inputs[0]) if nested else (inputs, {})
        if nested:
            yield inputs, {}


class Held:
    """The first samples of what passes."""

    def __init__(self, specs: Sequence[InputSpec], most: int = SAMPLE) -> None:
        self.specs, self.most = specs, most
        self.axes = [spec.batch_axis for spec in specs]
        self.parts: list[tuple[Tensor, ...]] = []
        self.count = 0

    def add(self, inputs: Sequence[Tensor]) -> None:
        """Take one batch."""
        if self.count >= self.most:
            return
        few = samples_of(self.specs, inputs, self.most - self.count)
        self.parts.append(few)
        self.count += next(
            (v.shape[a] for v, a in zip(few, self.axes, strict=True) if a is not None), self.most
        )

    def joined(self) -> tuple[Tensor, ...]:
        """All in one batch."""
        return tuple(
            values[0] if axis is None else torch.cat(values, axis)
            for axis, values in zip(self.axes, zip(*self.parts, strict=True), strict=True)
        )


class _Ranges:
    """What passes of the float inputs: enough to tell data that cannot be real."""

    def __init__(self, specs: Sequence[InputSpec]) -> None:
        self.specs = specs
        self.least = [float("inf")] * len(specs)
        self.greatest = [float("-inf")] * len(specs)
        self.samples = 0

    def add(self, inputs: Sequence[Tensor]) -> None:
        self.samples += batch_size(self.specs, inputs) or 1
        for index, value in enumerate(inputs):
            if value.numel():
                self.least[index] = min(self.least[index], float(value.min()))
                self.greatest[index] = max(self.greatest[index], float(value.max()))

    def warn(self) -> None:
        doubts = []
        for spec, least, greatest in zip(self.specs, self.least, self.greatest, strict=True):
            if spec.dtype.is_floating_point and least == greatest:
                doubts.append(f"{spec.name!r} is {least:g} everywhere")
            elif spec.dtype.is_floating_point and max(-least, greatest) > HUGE:
                doubts.append(f"{spec.name!r} goes from {least:g} to {greatest:g}, is it normalized?")
        if self.samples < FEW:
            doubts.append(f"{self.samples} samples are few, some hundred show what real inputs reach")
        if doubts:
            caution(
                f"the calibration data cannot stand for real inputs: {'; '.join(doubts)}; INT8 accuracy will suffer"
            )
