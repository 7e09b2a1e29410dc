"""Example inputs: given, or inferred from what the model says about itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from eqsat_deploy.calling import Arguments, arguments
from eqsat_deploy.capture import check_model, run, shared_copy
from eqsat_deploy.deployment import KEY
from eqsat_deploy.errors import InputError
from eqsat_extraction.cautions import caution

POSITIONS = 16


def example_arguments(model: nn.Module | ExportedProgram, given: Any = None) -> Arguments:
    """Positional and keyword arguments to trace `model` with.

    `given` may be a tensor, a tuple or list of positional arguments, or a dict of keyword arguments. Without it,
    in this order: shape-propagated placeholders of a GraphModule; `example_input_array` (Lightning); `pretrained_cfg`
    (timm); `dummy_inputs` and the configuration (transformers), where the model runs on them; then probes that must
    run, with a warning that says what was assumed. Inferred integers are drawn over what the model accepts.

    Raises:
        InputError: `model` is none, or nothing given and nothing inferred; the message says what to pass.
    """
    check_model(model)
    if given is not None:
        return arguments(given)
    if isinstance(model, ExportedProgram):
        if model.example_inputs is None:
            raise InputError("the exported program has no example inputs: pass example_inputs=")
        return tuple(model.example_inputs[0]), dict(model.example_inputs[1])
    for infer in (_placeholders, _lightning, _timm, _rebuilt):
        found = infer(model)
        if found is not None:
            return arguments(found)
    return _probe(model)


def draw_integers(function: Callable[..., Any], given: Arguments, seed: int = 0) -> Arguments:
    """`given` with every integer and boolean tensor drawn anew over what `function` accepts.

    A tensor that looks rows up is drawn over these rows, as the tables of a run on zeros tell; any other gets zeros and
    ones, the first along its last axis a one, as masks have them. Ones, or zeros, where the model runs on nothing else.
    """
    leaves, structure = pytree.tree_flatten(given)
    numbers = [i for i, v in enumerate(leaves) if isinstance(v, Tensor) and not _is_real(v)]
    if not numbers:
        return given
    generator = torch.Generator().manual_seed(seed)

    def attempt(values: list[Tensor]) -> Arguments:
        changed = list(leaves)
        for i, value in zip(numbers, values, strict=True):
            changed[i] = value.to(leaves[i].device, leaves[i].dtype)
        result: Arguments = pytree.tree_unflatten(changed, structure)
        return result

    zeros = attempt([torch.zeros(leaves[i].shape) for i in numbers])
    ones = attempt([torch.ones(leaves[i].shape) for i in numbers])
    # A mask of zeros may stop the one run, and a table of one row the other.
    rows = _rows_read(function, ones) | _rows_read(function, zeros)
    drawn = attempt([_drawn(leaves[i], rows.get(i), generator) for i in numbers])
    return next((a for a in (drawn, ones) if _runs(function, a)), zeros)


def _drawn(like: Tensor, rows: int | None, generator: torch.Generator) -> Tensor:
    values = torch.randint(rows or 2, like.shape, generator=generator)
    if rows is None and like.dim():
        values[..., 0] = 1
    return values


def _rows_read(function: Callable[..., Any], given: Arguments) -> dict[int, int]:
    """Which leaves of the arguments are places in a table, and how many rows that has."""
    leaves = pytree.tree_leaves(given)
    memories = {v.untyped_storage().data_ptr(): i for i, v in enumerate(leaves) if isinstance(v, Tensor)}
    reads = _Lookups(memories)
    with reads:
        _runs(function, given)
    return reads.rows


class _Lookups(TorchDispatchMode):
    """Inside, `rows` gets the number of rows of each table that is read at what lies in one of the memories."""

    def __init__(self, memories: Mapping[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.memories = memories
        self.rows: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        aten = torch.ops.aten
        if func is aten.embedding.default:
            self._note(args[1], args[0].shape[0])
        elif func is aten.index_select.default:
            self._note(args[2], args[0].shape[args[1]])
        elif func is aten.index.Tensor:
            for index, size in zip(args[1], args[0].shape, strict=False):
                self._note(index, size)
        return func(*args, **(kwargs or {}))

    def _note(self, index: Any, rows: int) -> None:
        leaf = self.memories.get(index.untyped_storage().data_ptr()) if isinstance(index, Tensor) else None
        if leaf is not None:
            self.rows[leaf] = min(rows, self.rows.get(leaf, rows))


def _runs(function: Callable[..., Any], given: Arguments) -> bool:
    args, kwargs = given
    try:
        with torch.no_grad():
            function(*args, **kwargs)
    except Exception:  # whatever somebody else's forward raises
        return False
    return True


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _random(shape: tuple[int, ...], model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(_device(model), _dtype(model))


def _like(values: list[Tensor], model: nn.Module) -> Any:
    """Random tensors of these shapes, two where a size is symbolic, and dtypes."""
    made = []
    for value in values:
        shape = tuple(s if isinstance(s, int) else 2 for s in value.shape)
        real = value.dtype.is_floating_point
        made.append(_random(shape, model).to(value.dtype) if real else torch.zeros(shape, dtype=value.dtype))
    copied = shared_copy(model)
    copied.eval()
    return draw_integers(copied.forward, (tuple(made), {}))[0]


def _placeholders(model: nn.Module) -> Any:
    if not isinstance(model, fx.GraphModule):
        return None
    found = []
    for node in model.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val", node.meta.get("example_value"))
        if not isinstance(value, Tensor):
            described = node.meta.get("tensor_meta")
            if described is None:
                return None
            value = torch.empty(described.shape, dtype=described.dtype, device="meta")
        found.append(value)
    return _like(found, model)


def _lightning(model: nn.Module) -> Any:
    return getattr(model, "example_input_array", None)


def _timm(model: nn.Module) -> Any:
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None)
    size = getattr(config, "input_size", None) or (
        config.get("input_size") if isinstance(config, dict) else None
    )
    return None if size is None else _random((2, *size), model)


def _rebuilt(model: nn.Module) -> Any:
    found = getattr(model, "meta", {}).get(KEY)
    if found is None:
        return None
    shapes = [
        torch.empty([2 if s is None else s for s in spec.shape], dtype=spec.dtype, device="meta")
        for spec in found.inputs
    ]
    tensors = _like(shapes, model)
    return tensors if found.call is None else found.call.batch(tensors)


def _transformers(model: nn.Module) -> Iterator[Any]:
    """Arguments of a transformers model: its own example, and what its configuration says of its main input."""
    try:
        own = getattr(model, "dummy_inputs", None)
    except Exception:  # a property of somebody else's class
        own = None
    if isinstance(own, Mapping):
        yield dict(own)
    name, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if not isinstance(name, str) or config is None:
        return
    size = getattr(config, "image_size", None)
    if isinstance(size, int | tuple | list):
        height, width = (size, size) if isinstance(size, int) else size
        yield {name: _random((2, getattr(config, "num_channels", 3), height, width), model)}
    yield from ({name: _random((2, getattr(config, "num_channels", 3), s, s), model)} for s in (224, 64))
    yield {name: _random((2, 16000), model)}  # a second of sound


def _candidates(model: nn.Module) -> Iterator[tuple[int, ...]]:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Linear)), None)
    if isinstance(first, nn.Conv2d):
        channels = first.in_channels
        yield from ((2, channels, s, s) for s in (224, 32, 28, 64, 299, 8))
    elif isinstance(first, nn.Conv1d):
        yield (2, first.in_channels, 128)
    elif isinstance(first, nn.Linear):
        yield (2, first.in_features)
        yield (2, POSITIONS, first.in_features)
    yield (2, 3, 224, 224)


def _probe(model: nn.Module) -> Arguments:
    """The first arguments that the model runs on: its own example, tokens for its tables, tensors for its layers."""
    tried: list[str] = []

    def accepted(candidate: Any) -> Arguments | None:
        args, kwargs = arguments(candidate)
        probed = shared_copy(model)
        probed.eval()  # whose result is None where a model's own `train` forgets to return it
        try:
            run(probed, args, kwargs)
        except InputError as error:
            tried.append(
                str(error).splitlines()[0].removeprefix("the model does not run on the example inputs ")
            )
            return None
        return args, kwargs

    for candidate in _transformers(model):
        found = accepted(candidate)
        if found is not None:
            return found
    for shape in dict.fromkeys(_candidates(model)):
        x = _random(shape, model)
        if accepted(x) is None:
            continue
        caution(
            f"no example_inputs given; assuming one {x.dtype} input of shape {['batch', *shape[1:]]}, on which the "
            "model runs. Pass example_inputs= if its inputs are others."
        )
        return (x,), {}
    raise InputError(
        "example inputs cannot be inferred (tried " + "; ".join(tried) + "): pass example_inputs=, a tensor, "
        "a tuple of arguments or a dict of keyword arguments"
    )
