"""One engine as it is served: its name, the tensors that it takes and gives, and whether requests can be joined."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqsat_deploy.engines.base import Engine
from eqsat_deploy.errors import InputError
from eqsat_deploy.interface import Output, outputs_of
from eqsat_deploy.loading import load_engine
from eqsat_deploy.serving.protocol import described

VERSION = "1"


@dataclass(frozen=True)
class Model:
    """An engine that is served. `limit` is how many samples are run together, 1 where requests cannot be joined."""

    name: str
    engine: Engine
    outputs: tuple[Output, ...]
    limit: int

    @property
    def metadata(self) -> dict[str, Any]:
        """What the protocol says of a model."""
        inputs = self.engine.signature.inputs
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": f"eqsat_deploy_{self.engine.name}",
            "inputs": [described(spec.name, spec.shape, spec.dtype) for spec in inputs],
            "outputs": [described(output.name, output.shape, output.dtype) for output in self.outputs],
        }


def load_model(spec: str, limit: int | None = None) -> Model:
    """The artifact at `DIR`, or at that of `NAME=DIR`; its name is else that of the folder without its ending.

    Raises:
        InputError: the name cannot stand in a URL, or an input or output is of a dtype that the protocol has not.
        ArtifactError: there is no artifact, or it does not run here.
    """
    name, _, path = spec.rpartition("=")
    name = name or Path(path).resolve().stem
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}", name):
        raise InputError(
            f"model name {name!r}: letters, digits, '_', '-' and '.' are allowed; give NAME={path}"
        )
    return served(name, load_engine(path), limit)


def served(name: str, engine: Engine, limit: int | None = None) -> Model:
    """`engine` ready to be served: run at its typical size and at another, which tells where the batch stands.

    `limit` is how many samples to run together, by default the largest batch that it was built for where there is a
    bound, else the typical one.
    """
    batch = engine.signature.batch
    try:
        outputs = outputs_of(engine.flat, engine.signature)
    except InputError as error:
        raise InputError(f"model {name!r}: {error}") from error
    most = limit or batch.maximum or batch.typical
    return Model(name, engine, outputs.each, min(most, batch.maximum or most) if outputs.joined else 1)
