"""The manifest of an artifact as a schema: all of it is checked here before anything is read from it.

What the types below do not say themselves is in the `__post_init__` beside them; both raise with the key.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from math import prod
from typing import Annotated, Any, Literal, TypeAlias, Union

from msgspec import UNSET, Meta, Struct, UnsetType, ValidationError, convert, field

from eqsat_deploy.errors import ArtifactError

FORMAT = 3
WEIGHTS = "weights.safetensors"
ENGINE = "engine"
REBUILD = "eqd.optimize(model).quantize(batches).build({engine!r}).save({path!r})"

LARGEST = 2**31 - 1  # of a size or a batch
MEMORY = 2**40  # bytes of all inputs at the typical batch
DEPTH = 200  # of objects and arrays within each other
# Names of torch's dtypes, and bytes of a value; without torch, so that an artifact can be read where it is not there.
DTYPES = {
    **dict.fromkeys(("bool", "uint8", "int8", "quint8", "qint8", "quint4x2", "quint2x4"), 1),
    **dict.fromkeys(
        ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu"), 1
    ),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("float32", "int32", "uint32", "qint32", "complex32"), 4),
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    "complex128": 16,
}
PART = r"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
LISTED = re.compile(rf"{re.escape(WEIGHTS)}|{ENGINE}(/{PART})+")

Size: TypeAlias = Annotated[int, Meta(ge=0, le=LARGEST)]
Count: TypeAlias = Annotated[int, Meta(ge=1, le=LARGEST)]
Place: TypeAlias = Annotated[int, Meta(ge=0, le=65535)]
Name: TypeAlias = Annotated[str, Meta(max_length=1000)]
Path: TypeAlias = Annotated[str, Meta(pattern=r"^[\w.<>]+:[\w.<>]+$", max_length=1000)]
Value: TypeAlias = Union[bool, int, float, str, "Written", None]
Structure: TypeAlias = Union["Nested", None]


class _Strict(Struct, forbid_unknown_fields=True):
    """An object with these keys and no others."""


class Written(_Strict):
    """A value that is no plain JSON (`calling_json.value_to_json`): exactly one of these, `number` with `unwritten`."""

    a_float: Literal["nan", "inf", "-inf"] | UnsetType = field(name="float", default=UNSET)
    a_tuple: list[Value] | UnsetType = field(name="tuple", default=UNSET)
    a_list: list[Value] | UnsetType = field(name="list", default=UNSET)
    a_dict: list[tuple[Value, Value]] | UnsetType = field(name="dict", default=UNSET)
    dtype: str | UnsetType = UNSET
    device: Annotated[str, Meta(pattern=r"^[a-z]+(:[0-9]{1,3})?$")] | UnsetType = UNSET
    unwritten: str | UnsetType = UNSET
    number: Place | UnsetType = UNSET

    def __post_init__(self) -> None:
        given = [name for name in self.__struct_fields__ if getattr(self, name) is not UNSET]
        if given not in ([name] for name in self.__struct_fields__[:-2]) and given != ["unwritten", "number"]:
            raise ValueError(f"one kind of value is expected, not {given}")
        _check_dtype(self.dtype)
        if isinstance(self.a_dict, list):
            _check_keys(key for key, _ in self.a_dict)


class Nested(_Strict):
    """What holds the parts of an argument or a result; None stands for a leaf."""

    a_tuple: list[Structure] | UnsetType = field(name="tuple", default=UNSET)
    a_list: list[Structure] | UnsetType = field(name="list", default=UNSET)
    a_dict: list[tuple[Value, Structure]] | UnsetType = field(name="dict", default=UNSET)
    namedtuple: Path | UnsetType = UNSET
    a_class: Path | UnsetType = field(name="class", default=UNSET)
    context: Value | UnsetType = UNSET
    fields: list[Name] | UnsetType = UNSET
    empty: list[Name] | UnsetType = UNSET
    parts: list[Structure] | UnsetType = UNSET

    def __post_init__(self) -> None:
        given = {name for name in self.__struct_fields__ if getattr(self, name) is not UNSET}
        named = {"namedtuple", "fields", "parts"}, {"a_class", "context", "fields", "empty", "parts"}
        if given not in ({"a_tuple"}, {"a_list"}, {"a_dict"}, *named):
            raise ValueError(f"one kind of container is expected, not {sorted(given)}")
        if isinstance(self.fields, list) and [*dict.fromkeys(self.fields)] != self.fields:
            raise ValueError(f"two fields of one name: {self.fields}")
        if isinstance(self.fields, list) and len(self.fields) != len(self.children):
            raise ValueError(f"{len(self.children)} parts for the fields {self.fields}")
        if isinstance(self.a_dict, list):
            _check_keys(key for key, _ in self.a_dict)

    @property
    def children(self) -> list[Structure]:
        """The parts, in order."""
        if isinstance(self.a_dict, list):
            return [part for _, part in self.a_dict]
        return next(v for v in (self.a_tuple, self.a_list, self.parts) if isinstance(v, list))


class Leaf(_Strict):
    """A tensor (`shape`, None where the batch stands, and `dtype`) or the `value` that is always given."""

    name: Name
    shape: Annotated[list[Size | None], Meta(max_length=64)] | UnsetType = UNSET
    dtype: str | UnsetType = UNSET
    value: Value | UnsetType = UNSET

    def __post_init__(self) -> None:
        given = self.shape is not UNSET, self.dtype is not UNSET, self.value is not UNSET
        if given not in ((True, True, False), (False, False, True)):
            raise ValueError(f"leaf {self.name!r} needs a shape and a dtype, or a value")
        _check_dtype(self.dtype)

    def bytes(self, batch: int) -> int:
        """What it takes at that batch size; 0 for a value."""
        if not isinstance(self.shape, list) or not isinstance(self.dtype, str):
            return 0
        return prod(batch if n is None else n for n in self.shape) * DTYPES[self.dtype]


class Argument(_Strict):
    """One parameter of `forward`: how what it is given is nested, and its leaves."""

    name: Name
    structure: Structure
    leaves: list[Leaf]

    def __post_init__(self) -> None:
        _check_leaves(self.structure, len(self.leaves))


class Parameter(_Strict):
    """One parameter of `forward`, as `inspect` has it."""

    name: Name
    kind: Literal["POSITIONAL_ONLY", "POSITIONAL_OR_KEYWORD", "VAR_POSITIONAL", "KEYWORD_ONLY", "VAR_KEYWORD"]
    default: Value | UnsetType = UNSET

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"{self.name!r} is no name of a parameter")

    def read(self) -> inspect.Parameter:
        """As `inspect` has it."""
        default = inspect.Parameter.empty if self.default is UNSET else self.default
        return inspect.Parameter(self.name, inspect._ParameterKind[self.kind], default=default)


class Call(_Strict):
    """How the module is called (`calling_json.call_to_json`)."""

    parameters: list[Parameter]
    arguments: list[Argument]
    outputs: Structure

    def __post_init__(self) -> None:
        known = inspect.Signature([parameter.read() for parameter in self.parameters]).parameters
        names = [argument.name for argument in self.arguments]
        if len(set(names)) != len(names) or not set(names) <= known.keys():
            raise ValueError(f"arguments {names} for the parameters {list(known)}")
        tensors = [leaf.name for a in self.arguments for leaf in a.leaves if leaf.shape is not UNSET]
        if len(set(tensors)) != len(tensors):
            raise ValueError(f"two inputs of one name: {tensors}")


class Output(_Strict):
    """A result that always has this value."""

    name: Name
    value: Value


class Batch(_Strict):
    """The batch sizes that an engine is built for."""

    minimum: Count
    typical: Count
    maximum: Count | None

    def __post_init__(self) -> None:
        if not self.minimum <= self.typical <= (self.maximum or self.typical):
            raise ValueError(f"minimum <= typical <= maximum is expected, not {self}")


class Signature(_Strict):
    """`deployment.Signature.to_json`: flat outputs are numbered from 0."""

    call: Call
    outputs: list[Place | Output]
    narrow: list[str]
    batch: Batch

    def __post_init__(self) -> None:
        _check_leaves(self.call.outputs, len(self.outputs))
        places = {output for output in self.outputs if isinstance(output, int)}
        if places != set(range(len(places))):
            raise ValueError(f"outputs are numbered from 0 on without gaps, not {sorted(places)}")
        if len(self.narrow) not in (0, len(places)):
            raise ValueError(f"{len(self.narrow)} dtypes in narrow for {len(places)} outputs")
        for name in self.narrow:
            _check_dtype(name)
        leaves = [leaf for argument in self.call.arguments for leaf in argument.leaves]
        if sum(leaf.bytes(self.batch.typical) for leaf in leaves) > MEMORY:
            raise ValueError(f"inputs of more than {MEMORY >> 40} TiB")


class File(_Strict):
    """What a file of the artifact must be."""

    bytes: Annotated[int, Meta(ge=0, le=2**50)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Versions(_Strict):
    """What it was saved with."""

    engine: Name
    eqsat_deploy: Name
    python: Name
    torch: Name


class ReportedLayer(Struct):
    """One kernel as it ran when the engine was built."""

    name: str
    type: str
    precision: str
    us: float


class PricedKernel(Struct):
    """One kernel of the form that was built, anchor first, as the cost model saw it."""

    nodes: Annotated[list[str], Meta(min_length=1)]
    precision: str
    predicted: float


class Realized(Struct):
    """What `build` adds to a report, as far as anything is read from it again."""

    shipped: str | None = None
    latency: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    expected_int8: int | None = None
    realized_int8: int | None = None
    kernels: list[PricedKernel] = field(default_factory=list)
    layers: list[ReportedLayer] = field(default_factory=list)


class Manifest(_Strict):
    """All that is known of an artifact; `report` and `options` are JSON values as they were given."""

    format: Literal[3]
    engine: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.+-]{1,100}$")]
    versions: Versions
    device: Name
    signature: Signature
    options: dict[str, Any]
    report: dict[str, Any] | None
    files: Annotated[dict[str, File], Meta(max_length=10_000)]

    def __post_init__(self) -> None:
        if alien := next((name for name in self.files if not LISTED.fullmatch(name)), None):
            raise ValueError(f"files: {alien!r} is neither {WEIGHTS} nor in {ENGINE}/")
        self.realized  # noqa: B018  raises where it is malformed
        if not isinstance((self.report or {}).get("command", ""), str):
            raise ValueError("report.command: a string is expected")

    @property
    def realized(self) -> Realized:
        """What the report says of the engine."""
        try:
            return convert((self.report or {}).get("engine") or {}, Realized)
        except ValidationError as error:
            raise ValueError(f"report.engine: {error}") from error

    def rebuild(self, path: object) -> str:
        """The command that makes the artifact again: as it was made, or what to write in Python."""
        return str((self.report or {}).get("command") or REBUILD.format(engine=self.engine, path=str(path)))


def encode(manifest: dict[str, Any], where: object) -> bytes:
    """The manifest's file. `ArtifactError`: a value in it is not JSON or does not fit the schema."""
    try:
        text = json.dumps(_strictly(manifest, "manifest"), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{where}: the report or an option is not JSON: {error}") from error
    written = text.encode()
    decode(written, where)
    return written


def decode(text: bytes, where: object) -> tuple[Manifest, dict[str, Any]]:
    """The manifest, and its signature as the JSON values that `deployment.Signature.from_json` reads.

    Raises:
        ArtifactError: it is no JSON, has a key twice, or does not fit the schema; the message has the key.
    """
    try:
        data = json.loads(text.decode(), object_pairs_hook=_once, parse_constant=_refused)
        _check_depth(data)
        found = data.get("format") if isinstance(data, dict) else None
        if found != FORMAT:
            raise ArtifactError(
                f"{where} has format {_short(found)}, this version reads {FORMAT}: "
                "load it with the eqsat-deploy that saved it, or save it again"
            )
        return convert(data, Manifest), data["signature"]
    except ValidationError as error:
        raise ArtifactError(f"{where} is not a manifest: {error}; save the artifact again") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{where} is damaged ({error}): copy or save the artifact again") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:36]}..."


def _strictly(value: Any, key: str) -> Any:
    """`value`; `TypeError` where a key in it is no string, which JSON would turn into one."""
    match value:
        case dict():
            if bad := [name for name in value if not isinstance(name, str)]:
                raise TypeError(f"{key} has the key {bad[0]!r}, which is no string")
            for name, item in value.items():
                _strictly(item, f"{key}.{name}")
        case list() | tuple():
            for index, item in enumerate(value):
                _strictly(item, f"{key}[{index}]")
    return value


def _check_dtype(name: str | UnsetType) -> None:
    if name is not UNSET and name not in DTYPES:
        raise ValueError(f"{name!r} is no dtype of torch")


def _check_keys(keys: Iterator[Value]) -> None:
    found: set[str] = set()
    for key in keys:
        if not _hashable(key):
            raise ValueError("a list or a dict is no key of a dict")
        if repr(key) in found:
            raise ValueError(f"the key {key!r} is there twice")
        found.add(repr(key))


def _hashable(value: Value) -> bool:
    if not isinstance(value, Written):
        return True
    if isinstance(value.a_tuple, list):
        return all(map(_hashable, value.a_tuple))
    return value.a_list is UNSET and value.a_dict is UNSET


def _check_leaves(structure: Structure, count: int) -> None:
    leaves, rest = 0, [structure]
    while rest:
        nested = rest.pop()
        leaves += nested is None
        rest += [] if nested is None else nested.children
    if leaves != count:
        raise ValueError(f"{count} leaves for a structure of {leaves}")


def _check_depth(data: Any) -> None:
    depth, level = 0, [data]
    while level:
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, dict | list))
        level = [item for items in inner for item in items]
        depth += 1
    if depth > DEPTH:
        raise ValueError(f"nested {depth} deep, {DEPTH} levels are read")
