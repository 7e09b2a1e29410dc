"""What an engine is: a compiled module, called with tensors; and how one is found by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, fx

from eqsat_deploy.deployment import DEFAULT_BATCH, Batch, Signature, flat_outputs
from eqsat_deploy.errors import EngineError, UnknownNameError

GROUP = "eqsat_deploy.engines"
PREFERENCE = ("tensorrt", "openvino", "onnxruntime")


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
        """Compile `module` (rebuilt or quantized), which is left as it is.

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
