"""Sizes of a captured graph as integers, in which `BATCH` stands for the symbolic batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from eqsat_deploy.errors import CaptureError
from eqsat_deploy.language import BATCH
from eqsat_deploy.language.operator import Unsupported
from eqsat_deploy.lower.rows import UNKNOWN

Symbolic = torch.SymInt | torch.SymFloat | torch.SymBool


def check_sizes(graph: fx.Graph) -> None:
    """Check that no number of the graph would be taken for the batch.

    Raises:
        CaptureError: one would; the message names the node.
    """
    for node in graph.nodes:
        numbers: list[Any] = []
        fx.node.map_aggregate((node.args, node.kwargs), numbers.append)
        value = node.meta.get("val")
        for tensor in value if isinstance(value, list | tuple) else (value,):
            numbers += tensor.shape if isinstance(tensor, Tensor) else ()
        for number in numbers:
            if type(number) is int and is_batched(number):
                raise CaptureError(
                    f"node {node.name!r} has the size {number}, a multiple of {BATCH}, which stands for the batch "
                    "inside the e-graph: such a model cannot be optimized. Make that size another one."
                )


def is_batched(number: int) -> bool:
    """Whether a number is a multiple of the batch."""
    return number != 0 and number % BATCH == 0


class Sizes:
    """Reads sizes in terms of `symbol`, that of the batch (None where the batch is fixed)."""

    def __init__(self, symbol: Any) -> None:
        self.symbol = symbol

    def size(self, size: int | torch.SymInt) -> int:
        """A size as an integer; `Unsupported` where it is neither a number nor a multiple of the batch."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        number = expression.subs(self.symbol, BATCH) if self.symbol is not None else expression
        if not number.is_Integer or (expression.free_symbols and expression.subs(self.symbol, 0) != 0):
            raise Unsupported(UNKNOWN)
        return int(number)

    def meta(self, value: Tensor) -> Tensor:
        """The meta tensor of a tensor; `Unsupported` where its shape is not known."""
        return torch.empty([self.size(s) for s in value.shape], dtype=value.dtype, device="meta")

    def known_meta(self, value: Any) -> Tensor | None:
        """The meta tensor of a tensor whose shape is known; None for anything else."""
        try:
            return self.meta(value) if isinstance(value, Tensor) else None
        except Unsupported:
            return None


def depends_on_symbols(value: Any) -> bool:
    """Whether a value, or the shape of a tensor in it, is known only when the model runs."""
    leaves = value if isinstance(value, list | tuple) else [value]
    if any(isinstance(v, Symbolic) for v in leaves):
        return True
    return any(isinstance(s, torch.SymInt) for v in leaves if isinstance(v, Tensor) for s in v.shape)
