"""The form that was chosen, as the file that another machine builds its engine from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, fx

from eqsat_deploy.deployment import Batch, InputSpec, located
from eqsat_deploy.engines.program import flat_module, prepared
from eqsat_deploy.errors import InputError
from eqsat_deploy.interface import outputs_of
from eqsat_deploy.targets import Target, find_engine, find_target
from eqsat_deploy.triton import check, engine_files, version_folder, write_config
from eqsat_extraction.arguments import checked, whole


@dataclass(frozen=True)
class Export:
    """Files that were written, the one to open last.

    `command` is what builds an engine of them with the runtime's own tool, None where it reads them as they are.
    `changes` is what they compute otherwise than the module, on purpose, a sentence each.
    """

    files: tuple[Path, ...]
    target: str
    inputs: tuple[InputSpec, ...]
    command: str | None
    changes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"wrote {', '.join(map(str, self.files))}: {', '.join(map(str, self.inputs))}"]
        lines += [f"changed on purpose: {change}" for change in self.changes]
        lines += [f"build it with\n  {self.command}"] if self.command else []
        return "\n".join(lines)


@checked
def export(
    module: fx.GraphModule,
    path: str | Path,
    target: str = "tensorrt",
    *,
    batch: Batch | int = 1,
    opset: int | None = None,
    triton: bool = False,
) -> Export:
    """Write `module` as the ONNX file of `target`, INT8 weights as such; what exceeds 2 GB in a file beside it.

    Nodes are named after the model's modules (`engines.onnx.export`). Nothing of the target has to be here.

    Args:
        module: what `optimize` or `quantize` returned.
        path: of the file; one that is there is replaced.
        target: whose encoding it gets, `tensorrt` or `onnxruntime`.
        batch: the typical size, or the range; without a maximum it is at least 8.
        opset: of ONNX, 21, the oldest, unless given. From 23 on attention is one operator, which TensorRT reads from
            10.14 on.
        triton: make `path` a model's folder in a repository of the Triton Inference Server, `config.pbtxt` and the file
            in `1/`. Then `target` may be `openvino`, too, which has to be installed; for `tensorrt`, `command` builds
            the plan that Triton reads.

    Raises:
        InputError: the target reads no ONNX file, `batch` is none, or Triton does not serve the target.
        EngineError: the module has no form there, or a file cannot be written.
        UnknownNameError: there is no such target.
    """
    module = located(module, torch.device("cpu"))
    found = find_target(target)
    sizes = batch if isinstance(batch, Batch) else Batch(typical=whole("batch", batch))
    sizes = replace(sizes, maximum=sizes.maximum or max(8, sizes.typical))
    if triton:
        return _triton(module, Path(path), found, sizes, opset)
    return _onnx(module, Path(path), found, sizes, opset)


def _onnx(module: fx.GraphModule, path: Path, target: Target, batch: Batch, opset: int | None) -> Export:
    from eqsat_deploy.engines.onnx import save_onnx

    name, lane = target.name, target.lane
    if lane is None:
        raise InputError(
            f"target {name!r} reads no ONNX file: build(engine={name!r}).save(path) writes what it reads"
        )
    saved = save_onnx(module, path, lane=lane, batch=batch, opset=opset)
    command = lane.command(saved.files[-1], saved.signature) if lane.command else None
    return Export(saved.files, name, saved.signature.wide.inputs, command, saved.changes)


def _triton(module: fx.GraphModule, folder: Path, target: Target, batch: Batch, opset: int | None) -> Export:
    served = check(target, batch)
    graph, signature = prepared(module, batch)
    outputs = outputs_of(_run(flat_module(graph)), signature.wide)
    engine = None if target.lane is not None else find_engine(target.name).build(module, batch=batch)
    version = version_folder(folder)
    if engine is None:
        made = _onnx(module, (version / served.file).with_suffix(".onnx"), target, batch, opset)
    else:
        files = engine_files(engine, version)
        made = Export(files, target.name, signature.wide.inputs, None, engine.changes)
    config = write_config(folder, served, made.inputs, outputs, batch)
    return replace(made, files=(*made.files, config))


def _run(flat: fx.GraphModule) -> Callable[[Sequence[Tensor]], Sequence[Tensor]]:
    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            results: Sequence[Tensor] = flat(*inputs)
        return results

    return run
