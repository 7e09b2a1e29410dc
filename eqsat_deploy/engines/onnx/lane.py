"""What a lane is: one runtime's way of writing INT8 in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eqsat_deploy.engines.onnx.graph import Exported


@dataclass(frozen=True)
class Lane:
    """`finalize` turns a float32 graph with markers into the lane's encoding, in place, and adds to its `changes`
    what then computes something else than the module."""

    name: str
    finalize: Callable[[Exported], None]
