"""A saved engine in a process that has no torch: called as the model was, with NumPy arrays, and returning them.

What `eqsat_deploy.load` is there. OpenVINO's and ONNX Runtime's files alone can be run so. Half precision, which
engines compute in float32, is given and returned as float32 where NumPy has no such dtype (bfloat16).
"""

from __future__ import annotations

import inspect
import re
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqsat_deploy import openvino_compiled
from eqsat_deploy.artifact import check_origin, checking
from eqsat_deploy.errors import ArtifactError, EngineError, InputError
from eqsat_deploy.hashing import CheckedFiles
from eqsat_deploy.manifest import Leaf, Manifest, Nested, Structure, Written
from eqsat_deploy.openvino_compiled import Compiled, read_model
from eqsat_deploy.processors import description, threads
from eqsat_deploy.record import Record
from eqsat_extraction.arguments import instance

Array = NDArray[Any]
Run = Callable[[Sequence[Array], int], Sequence[Array]]
"""Flat outputs for flat inputs of a batch size."""

HALVES = ("float16", "bfloat16")
_named_tuple: Any = namedtuple  # of which mypy knows the literal form alone


class ArrayEngine:
    """An engine that takes and returns NumPy arrays. Safe from several threads at once."""

    def __init__(self, manifest: Manifest, run: Run) -> None:
        self.manifest = manifest
        self._run = run
        call = manifest.signature.call
        self._signature = inspect.Signature([parameter.read() for parameter in call.parameters])
        self.inputs = _inputs(manifest)
        self.results = len({output for output in manifest.signature.outputs if isinstance(output, int)})

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the module was, and returns what it returned, nested as it was.

        Raises:
            InputError: an argument is missing or unknown, or has another shape, dtype or value than it was built for.
            EngineError: the runtime fails on inputs that fit.
        """
        try:
            given = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InputError(
                f"{error}: call it as forward{self._signature}, with {self._expected()}"
            ) from error
        arrays: list[Array] = []
        for argument in self.manifest.signature.call.arguments:
            if argument.name not in given:
                if missing := [leaf.name for leaf in argument.leaves if isinstance(leaf.shape, list)]:
                    raise InputError(f"input {missing[0]!r} is missing: call it with {self._expected()}")
                continue
            values = _leaves(argument.structure, given[argument.name], argument.name)
            for leaf, value in zip(argument.leaves, values, strict=True):
                if isinstance(leaf.shape, list):
                    arrays.append(_array(leaf, value))
                elif isinstance(leaf.value, Written) or leaf.value != value:
                    raise InputError(f"argument {leaf.name!r} is always what it was built for: leave it out")
        return self._pack(self.flat(arrays))

    def _expected(self) -> str:
        return ", ".join(f"{leaf.name} {_wanted(leaf)}" for leaf in self.inputs)

    def flat(self, arrays: Sequence[Array]) -> list[Array]:
        """Flat outputs for arrays in the order of `inputs`; raises as a call does."""
        size = self._batch(arrays)
        try:
            found = self._run([_wide(array) for array in arrays], size)
        except Exception as error:  # runtimes' errors have no common base
            raise EngineError(f"{self.manifest.engine} fails at batch {size}: {error}") from error
        if len(found) != self.results:
            raise EngineError(f"{self.manifest.engine} computes {len(found)} outputs, not {self.results}")
        narrow = self.manifest.signature.narrow or [""] * len(found)
        return [
            value.astype(np.float16) if dtype == "float16" else value
            for value, dtype in zip(found, narrow, strict=True)
        ]

    def _batch(self, arrays: Sequence[Array]) -> int:
        sizes = {
            size
            for leaf, array in zip(self.inputs, arrays, strict=True)
            for expected, size in zip(_shape(leaf), array.shape, strict=True)
            if expected is None
        }
        batch = self.manifest.signature.batch
        if len(sizes) > 1:
            raise InputError(f"inputs disagree on the batch size: {sorted(sizes)}")
        size = sizes.pop() if sizes else batch.typical
        if not batch.minimum <= size <= (batch.maximum or size):
            raise InputError(f"batch of {size}: it was built for {batch.minimum} to {batch.maximum}")
        return size

    def _pack(self, found: Sequence[Array]) -> Any:
        signature = self.manifest.signature
        leaves = (found[o] if isinstance(o, int) else _plain(o.value) for o in signature.outputs)
        return _nest(signature.call.outputs, leaves)


def load(path: str | Path) -> ArrayEngine:
    """The engine at `path`, ready to run.

    Raises:
        ArtifactError: not an artifact, damaged, of an engine that torch is needed for, or one that does not run here.
    """
    path = Path(instance("path", path, str, Path))
    with checking(path) as (manifest, _, engine_files):
        start = RUNTIMES.get(manifest.engine)
        if start is None:
            raise ArtifactError(
                f"{path} needs torch: engines of {manifest.engine!r} run with it alone; pip install torch"
            )
        try:
            device, version, run = start(engine_files, manifest)
        except ArtifactError:
            raise
        except Exception as error:  # whatever a runtime raises for files that it did not write
            raise ArtifactError(f"{path} needs {manifest.versions.engine}: {error}") from error
    check_origin(path, manifest, device, version, portable=True)
    engine = ArrayEngine(manifest, run)
    try:
        engine._pack([np.zeros(())] * engine.results)
    except Exception as error:  # names of fields that are none
        raise ArtifactError(f"{path}: signature: {error}; save the artifact again") from error
    return engine


def _openvino(files: CheckedFiles, manifest: Manifest) -> tuple[str, str, Run]:
    """Its device, its version and how it runs."""
    shapes = [_shape(leaf) for leaf in _inputs(manifest)]
    typical = manifest.signature.batch.typical
    compiled = Compiled(partial(read_model, files), shapes, typical, manifest.options, files.hashes)
    return openvino_compiled.device(), openvino_compiled.version(), compiled.run


def _onnxruntime(files: CheckedFiles, manifest: Manifest) -> tuple[str, str, Run]:
    """As `engines.onnxruntime`."""
    import onnxruntime

    file = (files.folder() / "onnxruntime.onnx").read_bytes()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors
    settings.intra_op_num_threads = threads(manifest.options)
    off = ["MatMulAddFusion"] if b"DequantizeLinear" in file else None
    session = onnxruntime.InferenceSession(
        file, settings, providers=["CPUExecutionProvider"], disabled_optimizers=off
    )
    names = [leaf.name for leaf in _inputs(manifest)]
    known = {value.name for value in session.get_inputs()}  # an input nothing reads is not in the file

    def run(arrays: Sequence[Array], size: int) -> list[Array]:
        given = {name: value for name, value in zip(names, arrays, strict=True) if name in known}
        found: list[Array] = session.run(None, given)
        return found

    return description("CPU"), onnxruntime.__version__, run


RUNTIMES: Mapping[str, Callable[[CheckedFiles, Manifest], tuple[str, str, Run]]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}


def _leaves(structure: Structure, value: Any, name: str) -> Iterator[Any]:
    """The leaves of an argument that has to be nested as `structure` says."""
    if structure is None:
        yield value
        return
    for child, part in zip(structure.children, _parts(structure, value, name), strict=True):
        yield from _leaves(child, part, name)


def _parts(structure: Nested, value: Any, name: str) -> Sequence[Any]:
    if isinstance(structure.a_dict, list):
        keys = [_plain(key) for key, _ in structure.a_dict]
        if isinstance(value, Mapping) and set(value) == set(keys):
            return [value[key] for key in keys]
    elif isinstance(structure.a_class, str) and isinstance(structure.fields, list):
        if isinstance(value, Mapping) and set(structure.fields) <= set(value):
            return [value[field] for field in structure.fields]
    elif isinstance(value, tuple | list) and len(value) == len(structure.children):
        return value
    raise InputError(f"argument {name!r}: it is nested otherwise than in the example inputs")


def _nest(structure: Structure, leaves: Iterator[Any]) -> Any:
    """`leaves` nested as `structure` says; a class that is not known here as a `Record`."""
    if structure is None:
        return next(leaves)
    parts = [_nest(child, leaves) for child in structure.children]
    if isinstance(structure.a_dict, list):
        return dict(zip((_plain(key) for key, _ in structure.a_dict), parts, strict=True))
    if isinstance(structure.fields, list):
        if isinstance(structure.namedtuple, str):
            return _named_tuple(re.split(r"[.:]", structure.namedtuple)[-1], structure.fields)(*parts)
        empty = structure.empty if isinstance(structure.empty, list) else []
        kind = str(structure.a_class).partition(":")[2]
        return Record(kind, dict(zip(structure.fields, parts, strict=True)) | dict.fromkeys(empty))
    return parts if isinstance(structure.a_list, list) else tuple(parts)


def _plain(value: Any) -> Any:
    """A value of the manifest; a dtype or a device by its name."""
    match value:
        case Written(a_float=str(text)):
            return float(text)
        case Written(a_tuple=list(values)):
            return tuple(map(_plain, values))
        case Written(a_list=list(values)):
            return list(map(_plain, values))
        case Written(a_dict=list(items)):
            return {_plain(key): _plain(item) for key, item in items}
        case Written():
            return next(v for v in (value.dtype, value.device, value.unwritten) if isinstance(v, str))
    return value


def _inputs(manifest: Manifest) -> list[Leaf]:
    """The tensors it takes, in order."""
    arguments = manifest.signature.call.arguments
    return [leaf for argument in arguments for leaf in argument.leaves if isinstance(leaf.shape, list)]


def _shape(leaf: Leaf) -> list[int | None]:
    assert isinstance(leaf.shape, list)
    return leaf.shape


def _array(leaf: Leaf, value: Any) -> Array:
    array, shape = np.asarray(value), _shape(leaf)
    fits = len(array.shape) == len(shape) and all(
        n is None or n == m for n, m in zip(shape, array.shape, strict=True)
    )
    if not fits or array.dtype.name != _dtype(leaf):
        raise InputError(
            f"input {leaf.name!r}: {_wanted(leaf)} is expected, not {list(array.shape)} {array.dtype.name}"
        )
    return array


def _wanted(leaf: Leaf) -> str:
    return f"[{', '.join('batch' if n is None else str(n) for n in _shape(leaf))}] {_dtype(leaf)}"


def _dtype(leaf: Leaf) -> str:
    """NumPy's name, which has no bfloat16."""
    return "float32" if leaf.dtype == "bfloat16" else str(leaf.dtype)


def _wide(array: Array) -> Array:
    return np.ascontiguousarray(array, dtype=np.float32 if array.dtype == np.float16 else array.dtype)
