"""A plan at work: contexts on streams of their own, on torch's memory as it is, recorded as CUDA graphs if asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import inf
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, cuda

from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.tensorrt_api import tensorrt, this_device, torch_dtype
from eqsat_deploy.engines.tensorrt_callbacks import error_recorder, logger
from eqsat_deploy.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

ALIGNMENT = 256  # bytes, of every address given to a context (NvInferRuntime.h, setTensorAddress)
GRAPHS = 8
"""How many batch sizes a stream records: each holds a context, whose scratch memory is on the GPU."""
RECORDING = Lock()


class Loaded:
    """A deserialized engine: what it takes and returns, and which batch sizes its profiles are for.

    Everything that it is made of has to outlive its contexts, so it is kept here, in the order in which it was made.
    """

    def __init__(self, plan: bytes, signature: Signature) -> None:
        api = tensorrt()
        self.device = this_device()
        self.errors = error_recorder(api)
        self.runtime: trt.Runtime = api.Runtime(logger(api))
        self.runtime.error_recorder = self.errors  # which hands it to the engine, and that to its contexts
        engine: trt.ICudaEngine | None = self.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(
                f"TensorRT {api.__version__} cannot load this plan on {cuda.get_device_name()}: a plan runs on the "
                f"version and the GPU model it was built for; build it again. {self.errors.said()}"
            )
        self.engine: trt.ICudaEngine = engine
        names = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        dtypes = {name: torch_dtype(api, self.engine.get_tensor_dtype(name)) for name in names}
        given = {name for name in names if self.engine.get_tensor_mode(name) == api.TensorIOMode.INPUT}
        self.inputs = {name: dtypes[name] for name in names if name in given}
        self.outputs = {name: dtypes[name] for name in names if name not in given}
        self.profiles = self._profiles(signature)
        self._lock = Lock()

    def profile(self, batch: int) -> int:
        """The profile for batches of this size that is for the fewest other sizes."""
        spans = enumerate(self.profiles)
        fitting = [(most - least, index) for index, (least, most) in spans if least <= batch <= most]
        if not fitting:
            raise EngineError(
                f"batch of {batch}: the plan's profiles are for {self.profiles}; build it again"
            )
        return min(fitting)[1]

    def context(self, profile: int, stream: Any) -> trt.IExecutionContext:
        """A new context in a profile, for calls on `stream`."""
        with self._lock:
            made: trt.IExecutionContext | None = self.engine.create_execution_context()
            if made is None:
                raise EngineError(f"TensorRT cannot make an execution context. {self.errors.said()}")
            context: trt.IExecutionContext = made  # in the first profile
            if profile and not context.set_optimization_profile_async(profile, stream.cuda_stream):
                raise EngineError(f"TensorRT has no profile {profile}. {self.errors.said()}")
        return context

    def _profiles(self, signature: Signature) -> list[tuple[float, float]]:
        """The least and the greatest batch of every profile."""
        axes = ((spec.name, spec.shape.index(None)) for spec in signature.inputs if None in spec.shape)
        name, axis = next(((name, axis) for name, axis in axes if name in self.inputs), ("", 0))
        if not name:
            return [(1, inf)]
        if (fixed := self.engine.get_tensor_shape(name)[axis]) >= 0:  # the file itself is of one size
            return [(fixed, fixed)]
        shapes = (
            self.engine.get_tensor_profile_shape(name, index)
            for index in range(self.engine.num_optimization_profiles)
        )
        return [(least[axis], most[axis]) for least, _, most in shapes]


@dataclass(frozen=True)
class Recorded:
    """A CUDA graph of one batch size, the memory that it reads and writes, and the context that has to live with it."""

    graph: Any
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]
    context: Any


class Worker:
    """A stream, and contexts that are its own: it serves one call at a time.

    Memory of the caller's is used where it is, and results are allocated on the caller's stream. The two streams wait
    for each other, so that memory is in order on the caller's stream, whenever it lets go of it.
    """

    def __init__(self, loaded: Loaded, *, graphs: bool = False) -> None:
        self.loaded = loaded
        self.stream = cuda.Stream(loaded.device)  # type: ignore[no-untyped-call]
        self._graphs = graphs
        self._contexts: dict[int, Any] = {}
        self._recorded: dict[int, Recorded] = {}

    def __call__(self, given: Mapping[str, Tensor], batch: int, *, wait: bool = True) -> dict[str, Tensor]:
        """The outputs on the GPU, by name. They are there with `wait`, else what is queued on the caller's stream from
        now on finds them."""
        loaded = self.loaded
        caller = cuda.current_stream(loaded.device)
        placed = {name: _placed(given[name], loaded.device, dtype) for name, dtype in loaded.inputs.items()}
        if self._graphs and (recorded := self._recording(placed, batch, caller)) is not None:
            results = {name: torch.empty_like(value) for name, value in recorded.outputs.items()}
            work = partial(self._replay, recorded, placed, results)
        else:
            context = self.context(batch)
            results = self._bind(context, placed)
            work = partial(self._enqueue, context)
        # After all memory is taken: what other threads still do with it is on the caller's stream by then.
        self.stream.wait_stream(caller)
        work()
        caller.wait_stream(self.stream)
        if wait:
            self.stream.synchronize()
        return results

    def context(self, batch: int) -> trt.IExecutionContext:
        """The context that serves batches of this size."""
        profile = self.loaded.profile(batch)
        if profile not in self._contexts:
            self._contexts[profile] = self.loaded.context(profile, self.stream)
        context: trt.IExecutionContext = self._contexts[profile]
        return context

    def forget(self) -> None:
        """Record anew: the weights have changed."""
        self._recorded.clear()

    def _bind(self, context: trt.IExecutionContext, placed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gives the context its inputs, and memory for its outputs, which it only points to: both have to live until
        the stream is done with them."""
        loaded = self.loaded
        for name, value in placed.items():
            if not context.set_input_shape(name, tuple(value.shape)):
                raise EngineError(
                    f"input {name!r}: shape {list(value.shape)} is outside what the engine was built for. "
                    f"{loaded.errors.said()}"
                )
            context.set_tensor_address(name, value.data_ptr())
        if missing := context.infer_shapes():
            raise EngineError(f"TensorRT cannot infer shapes: {', '.join(missing)} unspecified")
        results = {}
        for name, dtype in loaded.outputs.items():
            shape = tuple(context.get_tensor_shape(name))
            results[name] = torch.empty(shape, dtype=dtype, device=loaded.device)
            context.set_tensor_address(name, results[name].data_ptr())
        return results

    def _enqueue(self, context: trt.IExecutionContext) -> None:
        with cuda.stream(self.stream):  # which makes its GPU the current one, too
            if not context.execute_async_v3(self.stream.cuda_stream):
                raise EngineError(f"TensorRT did not run. {self.loaded.errors.said()}")

    def _replay(
        self, recorded: Recorded, placed: Mapping[str, Tensor], results: Mapping[str, Tensor]
    ) -> None:
        with cuda.stream(self.stream):  # all that touches recorded memory is on one stream
            for name, value in placed.items():
                recorded.inputs[name].copy_(value)
            recorded.graph.replay()
            for name, value in recorded.outputs.items():
                results[name].copy_(value)

    def _recording(self, placed: Mapping[str, Tensor], batch: int, caller: Any) -> Recorded | None:
        """The CUDA graph of a batch size, recorded when it is first met; None for more sizes than are recorded."""
        if batch in self._recorded or len(self._recorded) >= GRAPHS:
            return self._recorded.get(batch)
        # A context of its own: a graph is of the shapes and addresses that its context had.
        context = self.loaded.context(self.loaded.profile(batch), self.stream)
        self.stream.wait_stream(caller)
        with cuda.stream(self.stream):
            inputs = {name: value.clone() for name, value in placed.items()}
            outputs = self._bind(context, inputs)
        self._enqueue(
            context
        )  # TensorRT puts off work to the first run with new shapes, which a graph may not do
        self.stream.synchronize()
        graph = cuda.CUDAGraph()
        try:
            # Other threads go on taking memory meanwhile, but only one records: that waits for the whole GPU.
            with RECORDING, cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self._enqueue(context)
        except (EngineError, RuntimeError) as error:
            raise EngineError(
                f"this network cannot be recorded as a CUDA graph: {error}; build it without cuda_graphs"
            ) from error
        self._recorded[batch] = Recorded(graph, inputs, outputs, context)
        return self._recorded[batch]


def _placed(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """`value` itself where it is on the GPU already as TensorRT needs it; else a copy of it there."""
    value = value.detach().to(device, dtype, non_blocking=True).contiguous()
    return value.clone() if value.data_ptr() % ALIGNMENT else value
