"""An engine that needs no runtime: it doubles its input, and its file says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import DEFAULT_BATCH
from eqsat_deploy.engines import Batch, Engine, Layer, Signature
from eqsat_deploy.errors import EngineError


class Fake(Engine):
    """Doubles its input; its file says so."""

    name = "fake"
    here = ("machine A", "runtime 1")

    @classmethod
    def unavailable(cls) -> str | None:
        return None

    @classmethod
    def build(
        cls, module: fx.GraphModule, *, batch: Batch = DEFAULT_BATCH, options: Mapping[str, Any] | None = None
    ) -> Self:
        return cls(Signature.of(module, batch), module.state_dict())

    def run(self, inputs: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        return [2 * inputs[0]]

    def save_files(self, folder: Path) -> None:
        (folder / "program").mkdir()
        (folder / "program" / "code.txt").write_text("double")

    @classmethod
    def load_files(cls, folder: Path, signature: Signature, options: Mapping[str, Any]) -> Self:
        if (folder / "program" / "code.txt").read_text() != "double":
            raise EngineError("not a program")
        return cls(signature, options=options)

    def layers(self, *inputs: Tensor) -> tuple[Layer, ...]:
        return ()

    @property
    def device(self) -> str:
        return self.here[0]

    @property
    def version(self) -> str:
        return self.here[1]


class Double(nn.Module):
    """What `Fake` computes, with a tied parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(3))
        self.tied = self.one

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (2 * x * self.one * self.tied,)
