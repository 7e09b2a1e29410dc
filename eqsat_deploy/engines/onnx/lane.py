"""What a lane is: one runtime's way of writing INT8 in ONNX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.onnx.graph import Exported


@dataclass(frozen=True)
class Lane:
    """`finalize` turns a float32 graph with markers into the lane's encoding, in place, and adds to its `changes`
    what then computes something else than the module. `command` is what the runtime's own tool builds a file with
    that is at a path, for the batch sizes of a signature; None where files are read as they are."""

    name: str
    finalize: Callable[[Exported], None]
    command: Callable[[Path, Signature], str] | None = None
