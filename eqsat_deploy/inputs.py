"""Example inputs: given, or inferred from what the model says about itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from eqsat_deploy.calling import Arguments, arguments
from eqsat_deploy.deployment import KEY
from eqsat_deploy.errors import InputError


def example_arguments(model: nn.Module | ExportedProgram, given: Any = None) -> Arguments:
    """Positional and keyword arguments to trace `model` with.

    `given` may be a tensor, a tuple or list of positional arguments, or a dict of keyword arguments. Without it,
    in this order: shape-propagated placeholders of a GraphModule; `example_input_array` (Lightning); `pretrained_cfg`
    (timm); `dummy_inputs` (transformers); then probes that must run, with a warning that says what was assumed.

    Raises:
        InputError: nothing given and nothing inferred; the message says what to pass.
    """
    if given is not None:
        return arguments(given)
    if isinstance(model, ExportedProgram):
        if model.example_inputs is None:
            raise InputError("the exported program has no example inputs: pass example_inputs=")
        return tuple(model.example_inputs[0]), dict(model.example_inputs[1])
    for infer in (_placeholders, _lightning, _timm, _transformers, _rebuilt):
        found = infer(model)
        if found is not None:
            return arguments(found)
    return _probe(model)


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _random(shape: tuple[int, ...], model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(_device(model), _dtype(model))


def _like(value: Tensor, model: nn.Module) -> Tensor:
    if value.dtype.is_floating_point:
        shape = [s if isinstance(s, int) else 2 for s in value.shape]
        return _random(tuple(shape), model).to(value.dtype)
    return torch.zeros([s if isinstance(s, int) else 2 for s in value.shape], dtype=value.dtype)


def _placeholders(model: nn.Module) -> Any:
    if not isinstance(model, fx.GraphModule):
        return None
    found = []
    for node in model.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val", node.meta.get("example_value"))
            tensor_meta = node.meta.get("tensor_meta")
            if isinstance(value, Tensor):
                found.append(_like(value, model))
            elif tensor_meta is not None:
                found.append(
                    _like(torch.empty(tensor_meta.shape, dtype=tensor_meta.dtype, device="meta"), model)
                )
            else:
                return None
    return tuple(found)


def _lightning(model: nn.Module) -> Any:
    return getattr(model, "example_input_array", None)


def _timm(model: nn.Module) -> Any:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = getattr(config, "input_size", None) or (
        config.get("input_size") if isinstance(config, dict) else None
    )
    return None if size is None else _random((2, *size), model)


def _transformers(model: nn.Module) -> Any:
    try:
        inputs = getattr(model, "dummy_inputs", None)
    except Exception:  # a property of somebody else's class
        return None
    return dict(inputs) if isinstance(inputs, Mapping) else None


def _rebuilt(model: nn.Module) -> Any:
    found = getattr(model, "meta", {}).get(KEY)
    if found is None:
        return None
    shapes = [
        torch.empty([2 if s is None else s for s in spec.shape], dtype=spec.dtype, device="meta")
        for spec in found.inputs
    ]
    return tuple(_like(shape, model) for shape in shapes)


def _candidates(model: nn.Module) -> Iterator[tuple[int, ...]]:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)), None)
    if isinstance(first, nn.Conv2d):
        channels = first.in_channels
        yield from ((2, channels, s, s) for s in (224, 32, 28, 64, 299, 8))
    elif isinstance(first, nn.Conv1d):
        yield (2, first.in_channels, 128)
    elif isinstance(first, nn.Linear):
        yield (2, first.in_features)
        yield (2, 16, first.in_features)
    yield (2, 3, 224, 224)


def _probe(model: nn.Module) -> Arguments:
    probed = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    probed.eval()
    tried = []
    for shape in dict.fromkeys(_candidates(model)):
        x = _random(shape, model)
        try:
            with torch.no_grad():
                probed(x)
        except Exception as error:  # whatever somebody else's forward raises: the next probe may fit
            tried.append(
                f"{list(shape)}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
            )
            continue
        warnings.warn(
            f"no example_inputs given; assuming one {x.dtype} input of shape {['batch', *shape[1:]]}, on which the "
            "model runs. Pass example_inputs= if its inputs are others.",
            stacklevel=3,
        )
        return (x,), {}
    raise InputError(
        "example inputs cannot be inferred (tried " + "; ".join(tried) + "): pass example_inputs=, a tensor, "
        "a tuple of arguments or a dict of keyword arguments"
    )
