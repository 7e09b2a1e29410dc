"""The form that was chosen, as the file that another machine builds its engine from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import fx

from eqsat_deploy.deployment import Batch, InputSpec
from eqsat_deploy.errors import InputError
from eqsat_deploy.targets import find_target
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
) -> Export:
    """Write `module` as the ONNX file of `target`, INT8 weights as such; what exceeds 2 GB in a file beside it.

    Nodes are named as in the model. Nothing of the target has to be here.

    Args:
        module: what `optimize` or `quantize` returned.
        path: of the file; one that is there is replaced.
        target: whose encoding it gets, `tensorrt` or `onnxruntime`.
        batch: the typical size, or the range; without a maximum it is at least 8.
        opset: of ONNX, 21 unless given. From 23 on attention is one operator, which TensorRT reads from 10.14 on.

    Raises:
        InputError: the target reads no ONNX file, or `batch` is none.
        EngineError: the module has no ONNX form, or the file cannot be written.
        UnknownNameError: there is no such target.
    """
    from eqsat_deploy.engines.onnx import save_onnx

    lane = find_target(target).lane
    if lane is None:
        raise InputError(
            f"target {target!r} reads no ONNX file: build(engine={target!r}).save(path) writes what it reads"
        )
    sizes = batch if isinstance(batch, Batch) else Batch(typical=whole("batch", batch))
    sizes = replace(sizes, maximum=sizes.maximum or max(8, sizes.typical))
    saved = save_onnx(module, Path(path), lane=lane, batch=sizes, opset=opset)
    command = lane.command(saved.files[-1], saved.signature) if lane.command else None
    return Export(saved.files, target, saved.signature.wide.inputs, command, saved.changes)
