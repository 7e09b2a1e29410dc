"""A target: torch itself, in a thread of its own, which rounds as the quantized module does."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx

from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, Signature, deployment
from eqsat_deploy.engines import Engine, Layer
from eqsat_deploy.engines.base import check_options
from eqsat_deploy.engines.program import flat_module
from eqsat_deploy.targets import IntegerGrid, Target

FILE = "program.pt2"


class EagerEngine(Engine):
    """The module, called in a thread of its own."""

    name = "eager"
    portable = True

    def __init__(self, signature: Signature, module: Any, kernels: Sequence[Layer] = ()) -> None:
        super().__init__(signature)
        self.module, self.kernels = module, tuple(kernels)
        self.thread = ThreadPoolExecutor(1)

    @classmethod
    def unavailable(cls) -> str | None:
        """Torch is always there."""
        return None

    @classmethod
    def build(
        cls, module: fx.GraphModule, *, batch: Batch = DEFAULT_BATCH, options: Mapping[str, Any] | None = None
    ) -> Self:
        """A copy of the module; it has no options."""
        check_options(cls.name, options, ())
        placed = deployment(module).placement.kernels
        layers = [Layer(k.anchor, "torch", k.precision, 0.0, k.nodes) for k in placed]
        return cls(Signature.of(module, batch), flat_module(copy.deepcopy(module).cpu().eval()), layers)

    def run(self, inputs: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """The flat outputs."""
        return self.thread.submit(self._call, inputs).result()

    def _call(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(self.module(*inputs))

    def save_files(self, folder: Path) -> None:
        """An exported program at the typical batch size."""
        size = self.signature.batch.typical
        torch.export.save(torch.export.export(self.module, self.signature.zeros(size)), folder / FILE)

    @classmethod
    def load_files(cls, folder: Path, signature: Signature, options: Mapping[str, Any]) -> Self:
        """The exported program again."""
        return cls(signature, torch.export.load(folder / FILE).module())

    def layers(self, *inputs: Tensor) -> tuple[Layer, ...]:
        """The kernels that were placed; torch does not time them."""
        return self.kernels

    @property
    def device(self) -> str:
        """Always the CPU."""
        return "CPU"

    @property
    def version(self) -> str:
        """Torch's."""
        return torch.__version__


EAGER = Target(
    engine=EagerEngine,
    cost_models=("traffic",),
    rank=90,
    grid=IntegerGrid(unsigned=True, asymmetric=True),
)
