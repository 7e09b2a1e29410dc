"""What a target is: an engine, the prices that a form is chosen by for it, and the INT8 that its kernels read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from eqsat_deploy.engines.base import Engine
from eqsat_deploy.grid import IntegerGrid

if TYPE_CHECKING:
    from eqsat_deploy.engines.onnx import Lane


@dataclass(frozen=True)
class Triton:
    """How NVIDIA's Triton Inference Server serves the files of a target.

    Attributes:
        backend: of Triton, which runs them.
        file: what it looks for in the folder of a version.
        kind: the processor that it runs on, as an instance group's `kind`.
        joins: whether it runs requests joined to a batch at their own number.
        parameters: of the backend.
    """

    backend: str
    file: str
    kind: str
    joins: bool = True
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """One declaration of what a model is optimized, quantized and built for.

    Attributes:
        engine: what builds and runs there; the target has its name.
        cost_models: names of the cost models that price for it; the first is what `cost="auto"` stands for where
            the target is the one taken.
        rank: the order of preference among targets that a machine can build, the lowest first.
        grid: the codes of activations that its kernels read.
        cost_options: what the cost models are made with on the machine at hand, its device for instance.
        saturates: whether the machine at hand adds products in 16 bits (`IntegerGrid.saturating`).
        triton: how Triton serves it, None where it does not.
    """

    engine: type[Engine]
    cost_models: tuple[str, ...]
    rank: int
    grid: IntegerGrid
    cost_options: Callable[[], Mapping[str, Any]] = dict
    saturates: Callable[[], bool] = bool
    triton: Triton | None = None

    def __post_init__(self) -> None:
        if not self.cost_models:
            raise ValueError(f"target {self.name!r} names no cost model: nothing could be optimized for it")

    @property
    def name(self) -> str:
        """What it is found by: the name of its engine and of its entry point."""
        return self.engine.name

    @property
    def grid_here(self) -> IntegerGrid:
        """`grid` as the kernels of the machine at hand read it."""
        return replace(self.grid, saturating=self.saturates())

    @property
    def float_dtype(self) -> torch.dtype:
        """What is not INT8 is computed in, unless an option of the engine says otherwise."""
        return self.engine.float_dtype

    @property
    def lane(self) -> Lane | None:
        """How its ONNX files are written; None where its engine reads none."""
        return self.engine.lane

    @property
    def unavailable(self) -> str | None:
        """Why this machine cannot build for it, and how to get what is missing; None where it can."""
        return self.engine.unavailable()
