"""What capture results in: the graph of an exported program, with what is needed to call and to rebuild it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from eqsat_deploy.calling import Arguments, CallSpec, Fixed, InputSpec, plain_signature
from eqsat_deploy.capture.copying import CHANGES
from eqsat_deploy.errors import CaptureError, InputError


@dataclass(frozen=True)
class Captured:
    """A functional ATen graph, and what is needed to call and to rebuild it.

    `graph` has a placeholder per parameter, buffer, constant and leaf of the arguments; `constants` maps placeholder
    names to (original dotted name, tensor); `inputs` are the placeholders of the tensors among the arguments, in
    the order of `call.inputs`, and `batch_axes` where each has the batch. `example` are the arguments it was traced
    with, and `module` is what computes the same in torch.
    """

    graph: fx.Graph
    constants: dict[str, tuple[str, Tensor]]
    call: CallSpec
    inputs: tuple[str, ...]
    batch_axes: tuple[int | None, ...]
    example: Arguments
    batch_symbol: Any
    module: nn.Module

    @cached_property
    def tensors(self) -> tuple[Tensor, ...]:
        """The example's tensors, in the order of `inputs`."""
        return self.call.flatten(*self.example)

    @classmethod
    def of(cls, program: ExportedProgram, module: nn.Module, example: Arguments) -> Captured:
        """The functional program of `module`, traced with `example`.

        Raises:
            CaptureError: it changes a parameter, a buffer or an input.
        """
        signature = program.graph_signature
        _check_unchanged(signature)
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers,
                 **signature.inputs_to_lifted_tensor_constants}  # fmt: skip
        values = {**program.state_dict, **program.constants}
        constants = {k: (name, values[name].detach()) for k, name in names.items()}
        leaves = [n for n in program.graph.nodes if n.op == "placeholder" and n.name not in constants]
        tensors = [n for n in leaves if isinstance(n.meta.get("val"), Tensor)]
        spec = CallSpec.of(
            plain_signature(module.forward), example, program.call_spec.out_spec,
            _leaves(leaves, pytree.tree_leaves(example)),
        )  # fmt: skip
        return cls(
            graph=program.graph,
            constants=constants,
            call=spec,
            inputs=tuple(n.name for n in tensors),
            batch_axes=tuple(_batch_axis(n.meta["val"]) for n in tensors),
            example=example,
            batch_symbol=batch_symbol(program.graph),
            module=module,
        )


def _check_unchanged(signature: Any) -> None:
    for kind, changed in (("parameter", getattr(signature, "parameters_to_mutate", {})),
                          ("buffer", signature.buffers_to_mutate),
                          ("input", signature.user_inputs_to_mutate)):  # fmt: skip
        if changed:
            raise CaptureError(
                f"the model changes {kind} {next(iter(changed.values()))!r} when it runs, also in eval mode; {CHANGES}"
            )


def _leaves(placeholders: list[fx.Node], example: list[Any]) -> Iterator[InputSpec | Fixed]:
    if len(placeholders) != len(example):
        raise InputError(
            f"the exported program was made for {len(placeholders)} inputs, not for {len(example)}"
        )
    for node, given in zip(placeholders, example, strict=True):
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            shape = tuple(None if isinstance(size, torch.SymInt) else int(size) for size in value.shape)
            yield InputSpec(node.name, shape, value.dtype)
        else:
            yield Fixed(node.name, given)


def _batch_axis(value: Tensor) -> int | None:
    return next((i for i, size in enumerate(value.shape) if isinstance(size, torch.SymInt)), None)


def batch_symbol(graph: fx.Graph) -> Any:
    """The symbol of the first axis 0 that may vary, else of any axis that may; None where all is fixed."""
    sizes = [
        (position, size)
        for node in graph.find_nodes(op="placeholder")
        if isinstance(node.meta.get("val"), Tensor)
        for position, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt)
    ]
    ordered = sorted(sizes, key=lambda pair: pair[0])
    return next((symbol for _, size in ordered for symbol in size.node.expr.free_symbols), None)
