"""One engine as it is served: its name, the tensors that it takes and gives, and whether requests can be joined."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from eqsat_deploy.bucketed import BucketedEngine
from eqsat_deploy.deployment import InputSpec
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.errors import InputError
from eqsat_deploy.interface import Output, outputs_of
from eqsat_deploy.loading import load
from eqsat_deploy.serving.protocol import described

VERSION = "1"


@dataclass(frozen=True)
class Model:
    """An engine that is served. `limit` is how many samples are run together, 1 where requests cannot be joined."""

    name: str
    engine: Engine | BucketedEngine
    outputs: tuple[Output, ...]
    limit: int

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The tensors that it takes, in order."""
        return self.engine.inputs if isinstance(self.engine, BucketedEngine) else self.engine.signature.inputs

    @property
    def one(self) -> Engine:
        """The engine, or the one for the longest inputs."""
        return self.engine.longest if isinstance(self.engine, BucketedEngine) else self.engine

    def check(self, tensors: Sequence[Tensor]) -> int:
        """How many samples these inputs are; `InputError` where they do not fit."""
        engine = self.engine
        return (
            engine.check(tensors) if isinstance(engine, BucketedEngine) else engine.signature.check(tensors)
        )

    @property
    def metadata(self) -> dict[str, Any]:
        """What the protocol says of a model."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": f"eqsat_deploy_{self.one.name}",
            "inputs": [described(spec.name, spec.shape, spec.dtype) for spec in self.inputs],
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
    return served(name, load(path), limit)


def served(name: str, engine: Engine | BucketedEngine, limit: int | None = None) -> Model:
    """`engine` ready to be served: run at its typical size and at another, which tells where the batch stands. Requests
    for one with several lengths are run one by one.

    `limit` is how many samples to run together, by default the largest batch that it was built for where there is a
    bound, else the typical one.
    """
    one = engine.longest if isinstance(engine, BucketedEngine) else engine
    batch = one.signature.batch
    try:
        outputs = outputs_of(one.flat, one.signature)
    except InputError as error:
        raise InputError(f"model {name!r}: {error}") from error
    if isinstance(engine, BucketedEngine):
        return Model(name, engine, tuple(map(_free, outputs.each, engine.axes)), 1)
    most = limit or batch.maximum or batch.typical
    return Model(name, engine, outputs.each, min(most, batch.maximum or most) if outputs.joined else 1)


def _free(output: Output, axis: int | None) -> Output:
    """`output`, as long as the inputs along `axis`."""
    if axis is None:
        return output
    return replace(output, shape=(*output.shape[:axis], None, *output.shape[axis + 1 :]))
