"""What a source is by its name, as calibration batches for a module and as example inputs for a model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from eqsat_deploy.calling import CallSpec, InputSpec
from eqsat_deploy.capture import run, shared_copy
from eqsat_deploy.data import arrays, functions, images, texts
from eqsat_deploy.data.reading import PLAIN, Reading
from eqsat_deploy.deployment import SAMPLES
from eqsat_deploy.errors import InputError
from eqsat_deploy.quantization.calibrate import LABELS, readings
from eqsat_deploy.specs import find_object
from eqsat_extraction.arguments import checked

FORMS = (
    "an .npy, .npz, .safetensors or .pt file, a folder of images, a .txt file with a tokenizer, "
    "module:function or file.py:function"
)


@checked
def check_source(source: str, reading: Reading = PLAIN, *, random: bool = True) -> None:
    """Check what can be known of `source` before there is a model.

    Raises:
        InputError: it is of no known form, nothing is there, or it cannot be read. `random` allows `random:N`.
        UnknownNameError: the module or file of a function has nothing of that name.
    """
    match _kind(source):
        case "random":
            if not random:
                raise InputError(f"{source}: random inputs are described by their shapes, see --input")
            arrays.samples(source)
        case "images":
            images.image_files(Path(source))
        case "texts":
            texts.load_tokenizer(reading)
        case "arrays":
            arrays.read(Path(source))
        case _:
            find_object(source)


@checked
def load_batches(
    source: str,
    call: CallSpec,
    *,
    batch: int = 32,
    limit: int = 512,
    reading: Reading = PLAIN,
    model: Any = None,
    module: fx.GraphModule | None = None,
) -> Iterable[Any]:
    """Calibration batches, as `quantize` takes them, of at most `batch` samples, at most `limit` samples in all.

    Args:
        source: `random:N`; an `.npy`, `.npz` (arrays by input name, or in order), `.safetensors` or `.pt` file
            (`weights_only`), samples along axis 0; a folder of images; a `.txt` file, a sample on a line; or
            `module:function`, whose batches stay as they are, labels and all.
        call: how the module is called. Values are cast to the dtypes of its inputs.
        reading: how images and texts are prepared.
        model: the original, which timm's preprocessing of images is looked up with.
        module: what random integers are drawn for: over the rows of the tables that it looks them up in.

    Raises:
        InputError: no data there, it does not fit the inputs, or the source is of no known form.
    """
    inputs = call.inputs
    match _kind(source):
        case "random":
            found = arrays.random(arrays.samples(source), inputs, None if module is None else module.forward)
        case "images":
            found = (images.read_images(Path(source), model, _image(source, inputs), reading, limit),)
        case "texts":
            named = texts.read_texts(Path(source), [i.name for i in inputs], _length(inputs), reading, limit)
            found = arrays.in_order(named, inputs, Path(source))
        case "arrays":
            found = arrays.in_order(arrays.read(Path(source)), inputs, Path(source))
        case _:
            return functions.limited(source, limit)
    return list(map(call.batch, arrays.batched(source, found, inputs, batch, limit)))


@checked
def example_batch(source: str, model: Any, reading: Reading = PLAIN) -> Any:
    """The first samples of `source` as example inputs of `model`: of a function the first batch, without its labels
    where the model runs so.

    Raises:
        InputError: no data there, the source is of no known form, or the model does not run on it.
    """
    match _kind(source):
        case "images":
            given: Any = (images.read_images(Path(source), model, None, reading, SAMPLES),)
        case "texts":
            given = texts.read_texts(Path(source), _parameters(model), None, reading, SAMPLES)
        case "arrays":
            given = _named(arrays.read(Path(source)), model)
        case "random":
            raise InputError(f"{source}: random inputs are described by their shapes, see --input")
        case _:
            given = next(iter(functions.limited(source, 1)), None)
            if given is None:
                raise InputError(f"{source} gives no batches")
    errors = []
    module = model.module() if isinstance(model, ExportedProgram) else shared_copy(model).eval()
    for args, kwargs in reversed(list(readings(given))):  # an optional argument is no place for labels
        try:
            run(module, args, kwargs)
        except InputError as error:
            errors.append(error)
        else:
            return kwargs or args
    raise InputError(f"{source}: {errors[-1]}") from errors[-1]


def _kind(source: str) -> str:
    path = Path(source)
    if source.partition(":")[0] == "random":
        return "random"
    if path.is_dir():
        return "images"
    if path.is_file():
        return "texts" if path.suffix == ".txt" else "arrays"
    if ":" in source:
        return "function"
    raise InputError(f"no data at {source!r}: give {FORMS}")


def _image(source: str, inputs: tuple[InputSpec, ...]) -> images.Size:
    if len(inputs) != 1 or len(inputs[0].shape) != 4:
        raise InputError(f"{source} holds images, but the model's inputs are not one image: use an .npz file")
    _, channels, height, width = (size or 1 for size in inputs[0].shape)
    return channels, height, width


def _length(inputs: tuple[InputSpec, ...]) -> int | None:
    """How many tokens the module takes."""
    return next((spec.shape[1] for spec in inputs if len(spec.shape) == 2), None)


def _parameters(model: Any) -> list[str]:
    """Names of what the model is called with."""
    module = model.module() if isinstance(model, ExportedProgram) else model
    return list(inspect.signature(module.forward).parameters)


def _named(data: Any, model: Any) -> Any:
    """Arrays of a file as arguments: by name where the model knows the names, else in order."""
    if isinstance(data, Mapping):
        inputs = {name: value for name, value in data.items() if name not in LABELS}
        data = {n: value for n, value in inputs.items() if n in _parameters(model)} or list(inputs.values())
    dtype = next((p.dtype for p in _tensors(model) if p.is_floating_point()), torch.float32)

    def cut(value: Any) -> Tensor:
        tensor = torch.as_tensor(value)[:SAMPLES]
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    if isinstance(data, Mapping):
        return {name: cut(value) for name, value in data.items()}
    return tuple(map(cut, data if isinstance(data, list | tuple) else [data]))


def _tensors(model: Any) -> list[Tensor]:
    return list(model.state_dict.values() if isinstance(model, ExportedProgram) else model.parameters())
