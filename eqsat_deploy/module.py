"""What `optimize` returns: an `fx.GraphModule` with a report, that can be quantized and built."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from eqsat_deploy.deployment import deployment, device_of
from eqsat_deploy.report import Report

if TYPE_CHECKING:
    from eqsat_deploy.export import Export
    from eqsat_deploy.pareto import Front
    from eqsat_deploy.quantization import Sensitivities


class OptimizedModule(fx.GraphModule):
    """The chosen form, with its record (`deployment`). Calls check that inputs have the shapes and dtypes it was
    specialized to."""

    def __init__(
        self, root: nn.Module | dict[str, Any], graph: fx.Graph, class_name: str = "Optimized"
    ) -> None:
        super().__init__(root, graph, class_name)
        self._register()

    def _register(self) -> None:
        self.register_forward_pre_hook(_as_tensors, with_kwargs=True)
        self.register_forward_hook(_as_returned, with_kwargs=True)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moved, it makes tensors where it is moved to."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = device_of(self)
        moved = [n for n in self.graph.nodes if n.kwargs.get("device") not in (None, device)]
        for node in moved:
            node.update_kwarg("device", device)
        if moved:
            self.recompile()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> OptimizedModule:
        copied = super().__deepcopy__(memo)  # which leaves hooks behind
        assert isinstance(copied, OptimizedModule)
        copied._register()
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled node by node: `fx.GraphModule` would trace its code again and lose the names that the record uses."""
        root = nn.Module()
        root._modules, root._parameters, root._buffers = self._modules, self._parameters, self._buffers
        return _restored, (type(self).__name__, root, _written(self.graph), self.meta, self.training)

    @property
    def report(self) -> Report:
        """What the optimization found."""
        report = deployment(self).report
        assert report is not None
        return report

    def quantize(self, batches: Iterable[Any], **options: Any) -> OptimizedModule:
        """Calibrate on `batches` and put Q/DQ where the extraction placed them; see `quantization.quantize`.

        Raises:
            QuantizationError: no batches, NaN or infinity in them, or another shape than the model's inputs.
        """
        from eqsat_deploy.quantization import quantize

        quantized = quantize(self, batches, **options)
        assert isinstance(quantized, OptimizedModule)
        return quantized

    def sensitivity(self, batches: Iterable[Any] | None = None) -> Sensitivities:
        """The INT8 kernels of a quantized module by the error that each alone causes; see `quantization.sensitivity`.

        Raises:
            QuantizationError: the module is not quantized, or there is nothing to measure on.
        """
        from eqsat_deploy.quantization import sensitivity

        return sensitivity(self, batches)

    def pareto(self, batches: Iterable[Any], *, points: int = 6) -> Front:
        """The front of predicted time against accuracy on `batches`; see `pareto.pareto`.

        Raises:
            QuantizationError: as `quantize` does.
        """
        from eqsat_deploy.pareto import pareto

        return pareto(self, batches, points=points)

    def build(self, engine: str = "auto", **options: Any) -> Any:
        """Compile to an engine, of the plain form where that is faster for certain; see `build.build`.

        Raises:
            EngineError: the engine is not available, with how to get it, or it fails to compile the module.
        """
        from eqsat_deploy.build import build

        return build(self, engine, **options)

    def export(self, path: str | Path, target: str = "tensorrt", **options: Any) -> Export:
        """Write the file that `target` builds its engine from elsewhere; see `export.export`.

        Raises:
            InputError: the target reads no such file.
            EngineError: the module has no form there, or the file cannot be written.
        """
        from eqsat_deploy.export import export

        return export(self, path, target, **options)


_Written = tuple[str, str, Any, Any, Any]
"""A node as plain data: name, opcode, target, arguments, keyword arguments; other nodes by `_Named`."""


@dataclass(frozen=True)
class _Named:
    """A node, or a function within torch that cannot be pickled, by name."""

    name: str


def _written(graph: fx.Graph) -> list[_Written]:
    written = []
    for node in graph.nodes:
        args, kwargs = pytree.tree_map_only(fx.Node, lambda n: _Named(n.name), (node.args, node.kwargs))
        written.append((node.name, node.op, _by_name(node.target), args, dict(kwargs)))
    return written


def _by_name(target: Any) -> Any:
    """A node's target, or where torch has it: an overload, or what `torch.nn.functional` makes of two functions."""
    if isinstance(target, OpOverload):
        return _Named(f"ops.{target}")
    if "<locals>" in getattr(target, "__qualname__", ""):
        found = next((name for name, known in vars(torch.nn.functional).items() if known is target), None)
        return target if found is None else _Named(f"nn.functional.{found}")
    return target


def _restored(
    name: str, root: nn.Module, written: list[_Written], meta: dict[str, Any], training: bool
) -> OptimizedModule:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def read(leaf: Any) -> Any:
        return nodes[leaf.name] if isinstance(leaf, _Named) else leaf

    for node_name, op, target, args, kwargs in written:
        if isinstance(target, _Named):
            target = reduce(getattr, target.name.split("."), torch)
        args, kwargs = pytree.tree_map(read, (args, kwargs))
        nodes[node_name] = graph.create_node(op, target, args, kwargs, name=node_name)
    module = OptimizedModule(root, graph, name)
    module.meta = meta
    return module.train(training)


def _as_tensors(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call in the original's own structure as the tensors that the graph takes, checked: another height would be
    silently wrong, so it is an error."""
    call = deployment(module).call
    return (args, kwargs) if call is None else (call.flatten(args, kwargs), {})


def _as_returned(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """The result nested as the original's, dataclasses and named tuples too."""
    call = deployment(module).call
    return result if call is None else call.pack(result)
