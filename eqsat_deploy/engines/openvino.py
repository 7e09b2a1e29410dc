"""OpenVINO on a CPU: what `openvino_model` makes of a module, compiled, run, saved and looked into."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, fx

from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, Signature
from eqsat_deploy.engines.base import Engine, Layer, check_options
from eqsat_deploy.engines.openvino_files import join_constants
from eqsat_deploy.hashing import CheckedFiles
from eqsat_deploy.openvino_compiled import (
    OPTIONS,
    Compiled,
    device,
    read_model,
    version,
)

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
PRECISIONS = {"u8": "int8", "i8": "int8", "f32": "float32", "bf16": "bfloat16", "f16": "float16"}
# What the executed graph lists that computes nothing.
PASSIVE = {"Const", "Input", "Output"}
PROFILED_RUNS, PROFILED_SECONDS = 10, 0.5


class OpenVINOEngine(Engine):
    """A module compiled by OpenVINO's CPU plugin.

    The model stays dynamic in the batch; the typical size is compiled with static shapes, which the plugin
    plans ahead for, and all other sizes share one dynamic compilation, made when the first of them arrives.

    Options: `mode`, `latency` (the default: one call at a time, on all cores) or `throughput` (calls of several threads
    on some cores each; see `concurrency` and `map`), with `streams`, how many at a time, where OpenVINO's own choice is
    not to be; `threads` (all cores by default); `precision` of what is not INT8, `f32` (the default, so that
    results can be reproduced) or `bf16`, `f16` where the CPU has them; `shapes`, `static` (the default) or `dynamic`
    for one dynamic compilation that serves the typical size, too.

    Any thread may call it; in a process that was forked since, a call is an error.
    """

    name = "openvino"
    portable = True
    # Static compilations of OpenVINO 2026.4.1 compute some attentions wrongly, see `tests/deploy/test_parity.py`.
    fallbacks = ({"shapes": "dynamic"},)

    def __init__(
        self,
        read: Callable[[], Any],
        signature: Signature,
        weights: Mapping[str, Tensor] | None = None,
        options: Mapping[str, Any] | None = None,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(signature, weights, check_options(self.name, options, OPTIONS))
        shapes = [spec.shape for spec in signature.inputs]
        self._compiled = Compiled(read, shapes, signature.batch.typical, self.options, hashes)
        self.model = self._compiled.model

    @classmethod
    def unavailable(cls) -> str | None:
        """None where `openvino` can be imported."""
        try:
            import openvino  # noqa: F401
        except ImportError as error:
            return f"{error}; run `pip install openvino`"
        return None

    @classmethod
    def build(
        cls, module: fx.GraphModule, *, batch: Batch = DEFAULT_BATCH, options: Mapping[str, Any] | None = None
    ) -> Self:
        """Convert and compile `module`; `EngineError` when torch or OpenVINO refuses it."""
        # Not for what is loaded.
        from eqsat_deploy.engines.openvino_model import model_of
        from eqsat_deploy.engines.program import prepared

        options = check_options(cls.name, options, OPTIONS)
        weights = {name: value.detach().clone() for name, value in module.state_dict().items()}
        # A copy: OpenVINO shares the parameters' memory, and the caller may go on training.
        module, signature = prepared(module, batch)
        model = model_of(module, signature)
        return cls(lambda: model, signature, weights, options)

    def run(self, inputs: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """The flat outputs, on the CPU, in memory of their own."""
        return list(map(torch.from_numpy, self._compiled.run(_arrays(inputs), batch)))

    def save_files(self, folder: Path) -> None:
        """`model.xml` and `model.bin`: OpenVINO IR with a dynamic batch, INT8 weights stored as such."""
        import openvino
        from openvino._offline_transformations import compress_quantize_weights_transformation

        from eqsat_deploy.engines.openvino_model import number

        model = self.model.clone()
        compress_quantize_weights_transformation(model)
        number(model)
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)

    @classmethod
    def join_files(cls, folders: Sequence[Path]) -> None:
        """One `model.bin` with the constants of all."""
        join_constants(folders)

    @classmethod
    def load_files(cls, folder: Path, signature: Signature, options: Mapping[str, Any]) -> Self:
        """The engine compiled for this CPU, or as it was compiled before (`compiled_cache`)."""
        return cls.load(CheckedFiles.of(folder), signature, options)

    @classmethod
    def load(cls, files: CheckedFiles, signature: Signature, options: Mapping[str, Any]) -> Self:
        """What was compiled before is read while the files are checked."""
        return cls(partial(read_model, files), signature, options=options, hashes=files.hashes)

    def layers(self, *inputs: Tensor) -> tuple[Layer, ...]:
        """Every executed node of the plugin's graph, the median time of ten runs each, of fewer where they are long."""
        import openvino

        inputs = inputs or self.signature.zeros(self.signature.batch.typical)
        compiled = self._compiled.compile(self.signature.check(inputs), {"PERF_COUNT": True})
        request = compiled.create_infer_request()
        feed = _arrays(self.signature.widened(inputs))
        times: dict[str, list[float]] = {}
        end = time.perf_counter() + PROFILED_SECONDS
        for run in range(PROFILED_RUNS):
            if run > 2 and time.perf_counter() > end:
                break
            request.infer(feed)
            for entry in request.profiling_info:
                if entry.status == openvino.ProfilingInfo.Status.EXECUTED:
                    times.setdefault(entry.node_name, []).append(entry.real_time.total_seconds() * 1e6)
        return executed_layers(compiled, {name: median(taken) for name, taken in times.items()})

    @property
    def device(self) -> str:
        """The CPU's name and what OpenVINO can compute in on it."""
        return device()

    @property
    def version(self) -> str:
        """OpenVINO's version."""
        return version()

    @property
    def computes(self) -> torch.dtype:
        """The dtype of the option `precision`."""
        return DTYPES.get(self.options.get("precision", "f32"), torch.float32)

    @property
    def concurrency(self) -> int:
        """How many calls run at a time: in `latency` mode one, unless there are `streams`."""
        return self._compiled.concurrency


def executed_layers(compiled: Any, times: Mapping[str, float]) -> tuple[Layer, ...]:
    """The nodes of a compiled model's executed graph that have a time (microseconds by name), in order."""
    executed: dict[int, Layer] = {}
    for op in compiled.get_runtime_model().get_ops():
        info = {key: value.astype(str) for key, value in op.get_rt_info().items()}
        name = op.get_friendly_name()
        if info["layerType"] in PASSIVE or name not in times:
            continue
        precision = PRECISIONS.get(info["runtimePrecision"], info["runtimePrecision"])
        if info["layerType"] == "Deconvolution" and info["primitiveType"].endswith("_f32"):
            precision = "float32"  # which reads INT8, and computes on what it converts
        originals = [original.split("/") for original in info["originalLayersNames"].split(",")]
        nodes = tuple(dict.fromkeys(path[0] for path in originals if len(path) > 1))
        executed[int(info["execOrder"])] = Layer(name, info["layerType"], precision, times[name], nodes)
    return tuple(layer for _, layer in sorted(executed.items()))


def _arrays(inputs: Sequence[Tensor]) -> list[Any]:
    return [value.detach().cpu().contiguous().numpy() for value in inputs]
