"""A model's folder in a repository of NVIDIA's Triton Inference Server: `config.pbtxt`, and the files in `1/`.

The configuration is a `ModelConfig` (triton-inference-server/common, protobuf/model_config.proto) as protobuf text;
docs/user_guide/model_configuration.md of triton-inference-server/server says what the fields mean. It has no `name`:
Triton takes that of the folder, which can then be renamed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from eqsat_deploy.calling import InputSpec
from eqsat_deploy.deployment import Batch
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.errors import EngineError, InputError
from eqsat_deploy.interface import DATATYPES, Output, Outputs
from eqsat_deploy.targets import Target, Triton

CONFIG = "config.pbtxt"
VERSION = "1"
DELAY = 1000  # microseconds that a request waits for others, as `eqsat-deploy serve` has it


def check(target: Target, batch: Batch) -> Triton:
    """How Triton serves `target`.

    Raises:
        InputError: it does not, or not in batches of these sizes.
    """
    if target.triton is None:
        raise InputError(f"target {target.name!r} does not say how Triton serves it (Target.triton)")
    if batch.minimum > 1:
        raise InputError(f"batch={batch}: Triton may run a single request, so that the minimum has to be 1")
    return target.triton


def version_folder(folder: Path) -> Path:
    """The folder of the one version there is, made where it is missing, as the repository is that it is in.

    Raises:
        EngineError: it cannot be made.
    """
    try:
        folder.parent.mkdir(exist_ok=True)
        folder.mkdir(exist_ok=True)
        (folder / VERSION).mkdir(exist_ok=True)
    except OSError as error:
        raise EngineError(f"cannot write {folder}: {error}") from error
    return folder / VERSION


def engine_files(engine: Engine, version: Path) -> tuple[Path, ...]:
    """Write what `engine` saves of itself; raises `EngineError` where that fails."""
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=version.parent) as made:
            engine.save_files(Path(made))
            return tuple(file.replace(version / file.name) for file in sorted(Path(made).iterdir()))
    except OSError as error:
        raise EngineError(f"cannot write {version}: {error}") from error


def write_config(
    folder: Path, triton: Triton, inputs: Sequence[InputSpec], outputs: Outputs, batch: Batch
) -> Path:
    """Write `config.pbtxt`; raises `EngineError` where that fails."""
    text = "\n".join(_config(triton, inputs, outputs, batch)) + "\n"
    aside = folder / f".{CONFIG}"
    try:
        aside.write_text(text, encoding="utf-8")
        return aside.replace(folder / CONFIG)
    except OSError as error:
        raise EngineError(f"cannot write {folder / CONFIG}: {error}") from error


def _config(triton: Triton, inputs: Sequence[InputSpec], outputs: Outputs, batch: Batch) -> Iterator[str]:
    joined = outputs.joined and triton.joins and batch.maximum is not None
    yield f"backend: {json.dumps(triton.backend)}"
    yield f"max_batch_size: {batch.maximum if joined else 0}"
    for kind, specs in (("input", inputs), ("output", outputs.each)):
        for spec in specs:
            yield f"{kind} {{"
            yield from (f"  {line}" for line in _tensor(spec, joined))
            yield "}"
    yield f"instance_group {{ count: 1 kind: {triton.kind} }}"
    if joined:
        preferred = f"preferred_batch_size: {batch.typical} " if batch.typical > 1 else ""
        yield f"dynamic_batching {{ {preferred}max_queue_delay_microseconds: {DELAY} }}"
    for name, value in triton.parameters.items():
        yield f"parameters {{ key: {json.dumps(name)} value {{ string_value: {json.dumps(value)} }} }}"


def _tensor(spec: InputSpec | Output, joined: bool) -> Iterator[str]:
    dims = [-1 if size is None else size for size in spec.shape][int(joined) :]
    yield f"name: {json.dumps(spec.name, ensure_ascii=False)}"
    yield f"data_type: TYPE_{DATATYPES[spec.dtype][0]}"
    yield f"dims: {dims or [1]}"
    if not dims:  # Triton has no tensors without axes: a client sends or gets one of a single element
        yield "reshape { shape: [] }"
