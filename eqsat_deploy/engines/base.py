"""What an engine is: a compiled module, called with tensors; and how one is found by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx

from eqsat_deploy.errors import EngineError, InputError, UnknownNameError
from eqsat_deploy.placement import InputSpec

GROUP = "eqsat_deploy.engines"
PREFERENCE = ("tensorrt", "openvino", "onnxruntime")

Structure = Any  # a position among the flat outputs, None, or a tuple, list or dict of these


@dataclass(frozen=True)
class Batch:
    """The batch sizes an engine is built for: fastest at `typical`, valid from `minimum` to `maximum`.

    `maximum=None` is as large as the engine allows; one that needs a bound (TensorRT) picks its own.
    """

    minimum: int = 1
    typical: int = 1
    maximum: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.typical <= (self.maximum or self.typical):
            raise EngineError(f"{self}: needs 1 <= minimum <= typical <= maximum")


DEFAULT_BATCH = Batch()


@dataclass(frozen=True)
class Layer:
    """One kernel as the engine ran it.

    `precision` is the realized one, a torch dtype name (`int8` also for unsigned bytes). `nodes` are the
    graph nodes it covers where the engine says so. `microseconds` is 0 where it does not time kernels.
    """

    name: str
    type: str
    precision: str
    microseconds: float
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Signature:
    """How a module is called: its inputs, the structure of its outputs, and the batch sizes allowed.

    `outputs` has a position among the flat outputs wherever the module returns a tensor.
    """

    inputs: tuple[InputSpec, ...]
    outputs: Structure
    batch: Batch = DEFAULT_BATCH

    @classmethod
    def of(cls, module: fx.GraphModule, batch: Batch) -> Self:
        """The signature of a rebuilt module; `EngineError` without `meta["inputs"]` or with other outputs."""
        if "inputs" not in module.meta:
            raise EngineError(
                'the module has no meta["inputs"]: build what optimize() or quantize() returned'
            )
        return cls(tuple(module.meta["inputs"]), _positions(module, flat_outputs(module)), batch)

    def check(self, inputs: Sequence[Tensor]) -> int:
        """The batch size of `inputs` (`typical` where none has a batch axis); `InputError` on a misfit."""
        if len(inputs) != len(self.inputs):
            names = ", ".join(spec.name for spec in self.inputs)
            raise InputError(f"{len(inputs)} inputs given, {len(self.inputs)} expected: {names}")
        sizes: dict[int, str] = {}
        for spec, value in zip(self.inputs, inputs, strict=True):
            _check_input(spec, value)
            for expected, size in zip(spec.shape, value.shape, strict=True):
                if expected is None:
                    sizes[size] = spec.name
        if len(sizes) > 1:
            raise InputError(
                f"inputs disagree on the batch size: { ({name: n for n, name in sizes.items()}) }"
            )
        size = next(iter(sizes), self.batch.typical)
        if size < self.batch.minimum or (self.batch.maximum is not None and size > self.batch.maximum):
            raise InputError(f"batch of {size}: this engine was built for {self.batch}")
        return size

    def pack(self, tensors: Sequence[Tensor]) -> Any:
        """The flat outputs in the module's own structure."""
        return _fill(self.outputs, tensors)

    def zeros(self, size: int) -> tuple[Tensor, ...]:
        """Inputs of zeros at batch `size`."""
        shapes = ([size if n is None else n for n in spec.shape] for spec in self.inputs)
        return tuple(
            torch.zeros(shape, dtype=spec.dtype) for shape, spec in zip(shapes, self.inputs, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """The signature as JSON values."""
        return {
            "inputs": [
                {
                    "name": spec.name,
                    "shape": list(spec.shape),
                    "dtype": str(spec.dtype).removeprefix("torch."),
                }
                for spec in self.inputs
            ],
            "outputs": _encode(self.outputs),
            "batch": {
                "minimum": self.batch.minimum,
                "typical": self.batch.typical,
                "maximum": self.batch.maximum,
            },
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The signature `to_json` wrote."""
        inputs = tuple(
            InputSpec(item["name"], tuple(item["shape"]), getattr(torch, item["dtype"]))
            for item in data["inputs"]
        )
        return cls(inputs, _decode(data["outputs"]), Batch(**data["batch"]))


class Engine(ABC):
    """A compiled module. Calling it takes and returns what the module takes and returns.

    An implementation imports its runtime inside its methods only, so that finding engines costs nothing
    and `unavailable` can say what is missing.

    Attributes:
        name: what it is found by, the name of its entry point.
        portable: whether its files also run on other devices and with other versions of the runtime.
        signature: how the module is called.
        weights: the module's parameters and buffers by name, kept for the artifact.
        report: the optimization's report as JSON values, or None.
    """

    name: ClassVar[str]
    portable: ClassVar[bool] = False

    def __init__(self, signature: Signature, weights: Mapping[str, Tensor] | None = None) -> None:
        self.signature = signature
        self.weights: Mapping[str, Tensor] = weights or {}
        self.report: dict[str, Any] | None = None

    @classmethod
    @abstractmethod
    def unavailable(cls) -> str | None:
        """Why this machine cannot build and run this engine, and how to get it; None when it can."""

    @classmethod
    @abstractmethod
    def build(
        cls, module: fx.GraphModule, *, batch: Batch = DEFAULT_BATCH, options: Mapping[str, Any] | None = None
    ) -> Self:
        """Compile `module` (rebuilt or quantized, with `meta["inputs"]`), which is left as it is.

        Raises `EngineError`, and `UnknownNameError` for an option it does not have (`check_options`).
        """

    @abstractmethod
    def run(self, inputs: Sequence[Tensor], batch: int) -> Sequence[Tensor]:
        """The flat outputs (order of `flat_outputs`) for checked inputs of batch size `batch`."""

    @abstractmethod
    def save_files(self, folder: Path) -> None:
        """Write the engine's own files into an existing, empty folder; no pickles."""

    @classmethod
    @abstractmethod
    def load_files(cls, folder: Path, signature: Signature) -> Self:
        """The engine whose `save_files` wrote `folder`; `EngineError` when this machine cannot run it."""

    @abstractmethod
    def layers(self, *inputs: Tensor) -> tuple[Layer, ...]:
        """Every kernel executed for `inputs` (zeros at the typical batch when none are given), in order."""

    @property
    @abstractmethod
    def device(self) -> str:
        """The processor the engine is compiled for, as the manifest records it."""

    @property
    @abstractmethod
    def version(self) -> str:
        """The runtime's version, as the manifest records it."""

    def __call__(self, *inputs: Tensor) -> Any:
        """The module's outputs in its own structure; `InputError` names an input that does not fit."""
        batch = self.signature.check(inputs)
        return self.signature.pack(self.run(inputs, batch))

    def save(self, path: str | Path) -> None:
        """Write an artifact directory (`eqsat_deploy.artifact.save`)."""
        from eqsat_deploy.artifact import save  # it imports this module

        save(self, path)


def engines() -> dict[str, EntryPoint]:
    """Every registered engine by name, not yet imported.

    Two of one name raise `EngineError` naming both.
    """
    found: dict[str, EntryPoint] = {}
    for entry in sorted(set(entry_points(group=GROUP)), key=lambda entry: (entry.name, entry.value)):
        if entry.name in found:
            raise EngineError(
                f"two engines are called {entry.name!r}: {found[entry.name].value} and {entry.value}; "
                "uninstall one of the packages"
            )
        found[entry.name] = entry
    return found


def find_engine(name: str = "auto") -> type[Engine]:
    """The engine class called `name`, or with `"auto"` the first this machine can run.

    `"auto"` prefers TensorRT, then OpenVINO, then ONNX Runtime, then others by name. `EngineError` says how
    to get an engine that is not there; `UnknownNameError` lists the names of those registered.
    """
    known = engines()
    if not known:
        raise EngineError(
            "no engine is registered: entry points exist only for installed packages; "
            "run `pip install -e .` in the checkout, or use an engine class directly"
        )
    if name != "auto":
        if name not in known:
            raise UnknownNameError("engine", name, known)
        engine = _load(known[name])
        if (reason := engine.unavailable()) is not None:
            raise EngineError(f"engine {name!r} is not available: {reason}")
        return engine
    order = [*(n for n in PREFERENCE if n in known), *(n for n in known if n not in PREFERENCE)]
    reasons = []
    for candidate in order:
        engine = _load(known[candidate])
        if (reason := engine.unavailable()) is None:
            return engine
        reasons.append(f"{candidate}: {reason}")
    raise EngineError("no engine is available on this machine; " + "; ".join(reasons))


def check_options(engine: str, options: Mapping[str, Any] | None, known: Iterable[str]) -> dict[str, Any]:
    """`options` as a dict; `UnknownNameError` for a key that is not in `known`."""
    known = tuple(known)
    for key in options or {}:
        if key not in known:
            raise UnknownNameError(f"{engine} option", key, known)
    return dict(options or {})


def flat_outputs(module: fx.GraphModule) -> tuple[fx.Node, ...]:
    """The distinct nodes a module returns, in the order of its output structure."""
    output = module.graph.output_node()
    nodes: dict[fx.Node, None] = {}
    fx.map_arg(output.args[0], lambda node: nodes.setdefault(node))
    return tuple(nodes)


def flat_module(module: fx.GraphModule) -> fx.GraphModule:
    """`module` returning the tuple of its `flat_outputs`; parameters and submodules are shared with it."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op != "output":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in flat_outputs(module)))
    flat = fx.GraphModule(module, graph)
    flat.meta = dict(module.meta)
    return flat


def _load(entry: EntryPoint) -> type[Engine]:
    try:
        engine = entry.load()
    except ImportError as error:
        raise EngineError(f"engine {entry.name!r} ({entry.value}) cannot be imported: {error}") from error
    if not (isinstance(engine, type) and issubclass(engine, Engine)):
        raise EngineError(f"engine {entry.name!r} ({entry.value}) is not a subclass of Engine")
    return engine


def _check_input(spec: InputSpec, value: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise InputError(f"input {spec.name!r}: a tensor is expected, not {type(value).__name__}")
    if value.dtype != spec.dtype:
        raise InputError(f"input {spec.name!r}: {spec.dtype} is expected, not {value.dtype}")
    fits = len(value.shape) == len(spec.shape) and all(
        expected in (None, size) for expected, size in zip(spec.shape, value.shape, strict=True)
    )
    if not fits:
        shape = "x".join("batch" if n is None else str(n) for n in spec.shape)
        raise InputError(f"input {spec.name!r}: shape {shape} is expected, not {tuple(value.shape)}")


def _positions(module: fx.GraphModule, nodes: tuple[fx.Node, ...]) -> Structure:
    position = {node: index for index, node in enumerate(nodes)}

    def visit(value: object) -> Structure:
        match value:
            case fx.Node():
                return position[value]
            case None:
                return None
            case dict():
                return {str(key): visit(item) for key, item in value.items()}
            case tuple():
                return tuple(visit(item) for item in value)
            case list():
                return [visit(item) for item in value]
        raise EngineError(f"the module returns {value!r}; engines return tensors, tuples, lists and dicts")

    return visit(module.graph.output_node().args[0])


def _fill(structure: Structure, tensors: Sequence[Tensor]) -> Any:
    match structure:
        case int():
            return tensors[structure]
        case dict():
            return {key: _fill(item, tensors) for key, item in structure.items()}
        case tuple():
            return tuple(_fill(item, tensors) for item in structure)
        case list():
            return [_fill(item, tensors) for item in structure]
    return None


def _encode(structure: Structure) -> Any:
    match structure:
        case dict():
            return {"dict": {key: _encode(item) for key, item in structure.items()}}
        case tuple():
            return {"tuple": [_encode(item) for item in structure]}
        case list():
            return {"list": [_encode(item) for item in structure]}
    return structure


def _decode(data: Any) -> Structure:
    match data:
        case {"dict": items}:
            return {key: _decode(item) for key, item in items.items()}
        case {"tuple": items}:
            return tuple(_decode(item) for item in items)
        case {"list": items}:
            return [_decode(item) for item in items]
    return data
