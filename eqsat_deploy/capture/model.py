"""`capture`: from a model and example arguments to its graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from inspect import Parameter
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from eqsat_deploy.attention import keep_attention_whole
from eqsat_deploy.calling import Arguments, plain_signature
from eqsat_deploy.capture.copying import CPU, check_model, run, shared_copy
from eqsat_deploy.capture.exporting import exported
from eqsat_deploy.capture.filled import filled
from eqsat_deploy.capture.functional import functional
from eqsat_deploy.capture.graph import Captured
from eqsat_deploy.capture.simplify import inlined, read_each_sample
from eqsat_deploy.errors import InputError
from eqsat_deploy.stages import no_collection


@no_collection()
def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Captured:
    """Export `model` with a symbolic batch (axis 0 of every input unless `dynamic_shapes` says otherwise).

    An `ExportedProgram` has its own dynamic shapes and is taken as it is; it is not edited.

    Raises:
        CaptureError: the model does not export, or changes its state; the message names the line of the model.
        InputError: `model` is none, or the arguments do not fit it.
    """
    check_model(model)
    arguments = (tuple(args), dict(kwargs or {}))
    if isinstance(model, ExportedProgram):
        return _of_program(model, arguments, dynamic_shapes)
    module = shared_copy(model)
    module.eval()  # whose result is None where a model's own `train` forgets to return it
    keep_attention_whole(module)
    _name_keywords(module, arguments[1])
    example = pytree.tree_map(_at_least_two, _bound(module, arguments))
    run(module, *example)
    program = exported(module, example, dynamic_shapes)
    read_each_sample(program.graph)
    return Captured.of(functional(filled(inlined(program))), module, example)


def _name_keywords(module: nn.Module, given: Mapping[str, Any]) -> None:
    """Let `forward`, where it takes any keywords, take those `given` and no others: `torch.export` frees no size of
    what is in `**kwargs`, and whoever misspells one is told so."""
    forward, signature = module.forward, plain_signature(module.forward)
    known = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    if len(known) == len(signature.parameters):
        return
    more = [Parameter(name, Parameter.KEYWORD_ONLY) for name in given if name not in signature.parameters]

    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    named.__signature__ = signature.replace(parameters=[*known, *more])  # type: ignore[attr-defined]
    module.forward = named


def _bound(module: nn.Module, arguments: Arguments) -> Arguments:
    """The arguments as `forward` has them: in its order, by position where they can be."""
    args, kwargs = arguments
    signature = plain_signature(module.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"the example inputs do not fit forward{signature}: {error}. Pass example_inputs= that it accepts."
        ) from error
    return bound.args, bound.kwargs


def _at_least_two(value: Any) -> Any:
    """Exporting at batch 1 specializes the batch: examples of one are repeated."""
    value = _usable(value)
    return value.repeat_interleave(2, 0) if isinstance(value, Tensor) and value.shape[:1] == (1,) else value


def _usable(value: Any) -> Any:
    """A tensor of the example without its history; `InputError` where it has nothing to verify with."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    if value.is_meta:
        raise InputError("example_inputs: a tensor is on the meta device and has no values to verify with")
    if value.dim() and value.shape[0] == 0:
        raise InputError(f"example_inputs: a batch of no samples, {list(value.shape)}; pass at least one")
    if value.is_floating_point() and value.isnan().any():
        raise InputError(
            f"example_inputs: a tensor of shape {list(value.shape)} has NaN, which verifies nothing"
        )
    return value.cpu()


def _of_program(program: ExportedProgram, example: Arguments, dynamic_shapes: Any) -> Captured:
    if dynamic_shapes is not None:
        raise InputError(
            "dynamic_shapes: an ExportedProgram has its own, fixed when it was exported; pass them to "
            "torch.export.export"
        )
    own = _own(program)
    module = own.module()
    example = pytree.tree_map(_usable, _bound(module, example))
    structure = pytree.tree_structure(example)
    if structure != program.call_spec.in_spec:
        raise InputError(
            f"example_inputs: the program was exported for arguments nested as {program.call_spec.in_spec}, "
            f"not {structure}"
        )
    captured = Captured.of(functional(filled(inlined(own))), module, example)
    _ = captured.tensors  # that they fit
    return captured


def _own(program: ExportedProgram) -> ExportedProgram:
    """`program` with a graph and a signature of its own to be edited, and the same tensors."""
    tensors = (*program.state_dict.values(), *program.constants.values())
    module = copy.deepcopy(program.graph_module, {id(t): t for t in tensors})
    for node, copied in zip(program.graph.nodes, module.graph.nodes, strict=True):
        copied.name = node.name  # which a copy changes where it is a word of Python's, such as `input`
    own = ExportedProgram(
        module, module.graph, copy.deepcopy(program.graph_signature), dict(program.state_dict),
        program.range_constraints, program.module_call_graph, program.example_inputs, dict(program.constants),
        verifiers=program.verifiers,
    )  # fmt: skip
    return own if all(t.device == CPU for t in tensors) else move_to_device_pass(own, "cpu")
