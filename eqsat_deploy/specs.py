"""A model by name: `torchvision:NAME`, `timm:NAME`, `transformers:NAME`, `module:factory`, `file.py:factory`,
`file.pt2`."""

from __future__ import annotations

import importlib
import importlib.util
import pickle
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from eqsat_deploy.errors import EqsatError, InputError, UnknownNameError

Model = nn.Module | ExportedProgram
FORMS = "torchvision:NAME, timm:NAME, transformers:NAME, package.module:factory, path/to/file.py:factory or file.pt2"


def load_model(spec: str, *, pretrained: bool = False, weights: str | Path | None = None) -> Model:
    """The model that `spec` names, in eval mode.

    Without `pretrained` or `weights` its parameters are whatever its factory makes, random for most. A factory is
    somebody's code, and so may be what is in a .pt2 file, which torch.export.load unpickles.

    Args:
        spec: see the module's docstring; a factory is called without arguments and returns the model.
        pretrained: download the weights that the library publishes (torchvision, timm, transformers).
        weights: a state dict, `.safetensors` or `torch.save`d (read with `weights_only=True`).

    Raises:
        InputError: the spec is malformed, its library or file cannot be imported, the factory fails or returns
            something that is no model, or the weights do not fit it.
        UnknownNameError: the library or file has nothing of that name; the message lists near misses.
    """
    if spec.endswith(".pt2"):
        if pretrained or weights is not None:
            raise InputError(f"{spec}: an exported program has its weights in it; leave others out")
        return _exported(Path(spec))
    source, separator, name = spec.rpartition(":")
    if not separator or not source or not name:
        raise InputError(f"{spec!r} names no model: write {FORMS}")
    known = LIBRARIES.get(source)
    if known is None and pretrained:
        raise InputError(
            f"{spec!r}: pretrained weights are published for {', '.join(LIBRARIES)}; use weights= here"
        )
    model = _from_library(spec, known, name, pretrained) if known is not None else _from_factory(spec)
    if not isinstance(model, Model):
        raise InputError(f"{spec}: a torch.nn.Module is expected, not {type(model).__name__}")
    if isinstance(model, nn.Module):
        model.eval()
        if weights is not None:
            _load_weights(model, Path(weights))
    elif weights is not None:
        raise InputError(f"{spec}: an ExportedProgram has its weights in it; leave weights= out")
    return model


def parse_input(text: str, *, seed: int = 0) -> Tensor:
    """A random input from `SHAPE[:DTYPE]`, such as `1x3x224x224` or `2x16:int64`; integers are zeros until
    `draw_inputs` knows the model.

    Raises:
        InputError: the text is not of that form.
    """
    shape, _, dtype_name = text.partition(":")
    dtype = getattr(torch, dtype_name or "float32", None)
    sizes = shape.split("x")
    if not isinstance(dtype, torch.dtype) or not all(s.isdecimal() and int(s) > 0 for s in sizes):
        raise InputError(f"input {text!r}: write SHAPE or SHAPE:DTYPE, such as 1x3x224x224 or 2x16:int64")
    if not dtype.is_floating_point:
        return torch.zeros([int(s) for s in sizes], dtype=dtype)
    return torch.randn([int(s) for s in sizes], generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw_inputs(model: Model, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`inputs` with integers drawn over what `model` accepts: token ids over its vocabulary."""
    from eqsat_deploy.capture import shared_copy
    from eqsat_deploy.inputs import draw_integers

    module = model.module() if isinstance(model, ExportedProgram) else shared_copy(model)
    return draw_integers(module, (inputs, {}))[0]


def _from_library(spec: str, make: Callable[[str, bool], Any], name: str, pretrained: bool) -> Any:
    try:
        return make(name, pretrained)
    except EqsatError:
        raise
    except Exception as error:  # of what each library downloads with
        if not pretrained:
            raise
        raise InputError(
            f"{spec}: its published weights cannot be had ({_first_line(error)}); --weights FILE reads them from a file"
        ) from error


def _torchvision(name: str, pretrained: bool) -> Any:
    models = library("torchvision").models
    if name not in models.list_models():
        raise UnknownNameError("torchvision model", name, models.list_models())
    return models.get_model(name, weights="DEFAULT" if pretrained else None)


def _timm(name: str, pretrained: bool) -> Any:
    timm = library("timm")
    if name.partition(".")[0] not in timm.list_models():
        raise UnknownNameError("timm model", name, timm.list_models())
    return timm.create_model(name, pretrained=pretrained)


def _transformers(name: str, pretrained: bool) -> Any:
    """A hub name or local folder; or, for random weights, also a model type (`vit`) in its default configuration."""
    transformers = library("transformers")
    _check_transformers(name, list(transformers.CONFIG_MAPPING))
    try:
        if pretrained:
            return transformers.AutoModel.from_pretrained(name)
        types = transformers.CONFIG_MAPPING
        config = types[name]() if name in types else transformers.AutoConfig.from_pretrained(name)
        return transformers.AutoModel.from_config(config)
    except (OSError, ValueError) as error:
        raise InputError(f"transformers:{name} cannot be made: {_first_line(error)}") from error
    except ImportError as error:  # it imports what a model needs when that is asked for, torchvision among it
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(
            f"transformers:{name} cannot be made, the import of what it needs fails ({_first_line(cause)})"
        ) from error


def _check_transformers(name: str, types: list[str]) -> None:
    """Check a name that is not from the hub (`owner/name`, or `type-size` of old) before the network is asked.

    Raises:
        InputError: it is a path to no folder.
        UnknownNameError: it is nearly a model type.
    """
    if Path(name).is_dir() or name in types:
        return
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(f"transformers:{name}: there is no folder {name}")
    hub = "/" in name or any(name.startswith(f"{known}-") for known in types)
    if not hub and get_close_matches(name, types, n=1, cutoff=0.6):
        raise UnknownNameError("transformers model type", name, types)


LIBRARIES: dict[str, Callable[[str, bool], Any]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
}


def library(name: str) -> Any:
    """The library of this name; `InputError` says how to get it where its import fails."""
    try:
        module = importlib.import_module(name)
        if name == "torchvision":
            importlib.import_module("torchvision.models")
    except ImportError as error:
        raise InputError(f"{name} cannot be imported ({_first_line(error)}): pip install {name}") from error
    except Exception as error:  # a torchvision built for another torch fails while it registers its operators
        raise InputError(
            f"{name} is installed but its import fails ({_first_line(error)}): the torchvision it uses must be the one "
            f"built for torch {torch.__version__}"
        ) from error
    return module


def _exported(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        return torch.export.load(path)
    except Exception as error:  # of a damaged archive, of operators that are not registered here
        raise InputError(f"{path} is no program that torch.export saved: {_first_line(error)}") from error


def _from_factory(spec: str) -> Any:
    factory = find_object(spec)
    if isinstance(factory, Model):
        return factory
    if not callable(factory):
        raise InputError(f"{spec}: a function that returns a model is expected, not {type(factory).__name__}")
    return call_located(spec, factory)


def find_object(spec: str) -> Any:
    """What `module:name` or `file.py:name` names.

    Raises:
        InputError: the module or file cannot be imported.
        UnknownNameError: it is not there, or has nothing of that name; the message lists near misses.
    """
    source, _, name = spec.rpartition(":")
    module = _from_file(Path(source)) if source.endswith(".py") else _from_module(spec, source)
    found = getattr(module, name, None)
    if found is None:
        public = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise UnknownNameError(f"name in {source}", name, public)
    return found


def call_located(spec: str, function: Callable[[], Any]) -> Any:
    """What somebody else's function returns; `InputError` says where it fails."""
    try:
        return function()
    except Exception as error:  # whatever it raises
        raise InputError(f"{spec} failed when called without arguments: {_located(error)}") from error


def _from_module(spec: str, source: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:  # as `python -m` does, and a console script does not
        sys.path.insert(0, here)
    try:
        return importlib.import_module(source)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if source == missing or source.startswith(f"{missing}."):
            raise UnknownNameError("model source", source, [*LIBRARIES, "path/to/file.py"]) from error
        raise InputError(f"{spec}: {source} cannot be imported: {_located(error)}") from error
    except Exception as error:
        raise InputError(f"{spec}: {source} cannot be imported: {_located(error)}") from error


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UnknownNameError("model file", str(path), siblings)
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.parent.resolve()))  # the file may import its neighbours, as when it is run
    try:
        sys.modules.setdefault(path.stem, module)
        specification.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{path} cannot be imported: {_located(error)}") from error
    return module


def _load_weights(model: nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"weights {path}: it holds more than tensors by name; save model.state_dict()"
        ) from error
    except (OSError, RuntimeError, TypeError, SafetensorError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        said = lines[1:] if "loading state_dict" in lines[0] else lines[:1]  # what does not fit, a line each
        reasons = "; ".join(shorten(line, 240, placeholder=" ...") for line in said[:3])
        more = f"; and {len(said) - 3} more" if len(said) > 3 else ""
        raise InputError(f"weights {path}: {reasons}{more}") from error


def _located(error: BaseException) -> str:
    """The error and the last line of code it passed through."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace is not None else ""
    return f"{type(error).__name__}: {_first_line(error)}{where}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
