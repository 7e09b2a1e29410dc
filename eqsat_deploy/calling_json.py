"""A call specification as JSON values, and back: nothing is pickled, imported or run on the way.

A class in it (a dataclass, a named tuple, what transformers returns) is written by its name and those of its fields.
Where the module that has it is imported already when the artifact is loaded, and torch's pytree knows the class, it
comes back as itself. Elsewhere a named tuple comes back as one of that name and fields; what else was returned comes
back as a `Record`, whose fields are keys and attributes; and what else was an argument is given as a dict.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
from collections import OrderedDict, defaultdict, namedtuple
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

from eqsat_deploy.calling import Argument, CallSpec, Fixed, InputSpec, keys_of, same_value
from eqsat_deploy.record import Record as Record

_named_tuple: Any = namedtuple  # of which mypy knows the literal form alone


def _flatten(record: Record) -> tuple[list[Any], Any]:
    given = {name: value for name, value in record.items() if value is not None}
    return list(given.values()), (record.__dict__["kind"], tuple(given), tuple(sorted(record.keys() - given)))


def _unflatten(parts: Iterable[Any], context: Any) -> Record:
    kind, names, empty = context
    return Record(kind, dict(zip(names, parts, strict=True)) | dict.fromkeys(empty))


pytree.register_pytree_node(Record, _flatten, _unflatten)


@dataclass(frozen=True)
class Unwritten:
    """A value that JSON has no form for. Nothing but the default that it was is equal to it."""

    text: str
    number: int

    def __repr__(self) -> str:
        return f"{self.text}, which the artifact could not keep"


def call_to_json(call: CallSpec) -> dict[str, Any]:
    """`call` as JSON values."""
    objects: list[Any] = []
    parameters = []
    for parameter in call.signature.parameters.values():
        written = {"name": parameter.name, "kind": parameter.kind.name}
        if parameter.default is not inspect.Parameter.empty:
            written["default"] = value_to_json(parameter.default, objects)
        parameters.append(written)
    arguments = [
        {
            "name": argument.name,
            "structure": _structure_to_json(argument.structure),
            "leaves": [_leaf_to_json(leaf, objects) for leaf in argument.leaves],
        }
        for argument in call.arguments
    ]
    return {"parameters": parameters, "arguments": arguments, "outputs": _structure_to_json(call.outputs)}


def call_from_json(data: Mapping[str, Any]) -> CallSpec:
    """The specification that `call_to_json` wrote."""
    parameters = [
        inspect.Parameter(
            each["name"],
            inspect._ParameterKind[each["kind"]],
            default=value_from_json(each["default"]) if "default" in each else inspect.Parameter.empty,
        )
        for each in data["parameters"]
    ]
    arguments = tuple(
        Argument(
            each["name"],
            pytree.tree_structure(_example(each["structure"], returned=False)),
            tuple(_leaf_from_json(leaf) for leaf in each["leaves"]),
        )
        for each in data["arguments"]
    )
    outputs = pytree.tree_structure(_example(data["outputs"], returned=True))
    return CallSpec(inspect.Signature(parameters), arguments, outputs)


def value_to_json(value: Any, objects: list[Any]) -> Any:
    """`value` as JSON values; one that has no form there by its place in `objects`, to which it is added."""

    def each(values: Iterable[Any]) -> list[Any]:
        return [value_to_json(v, objects) for v in values]

    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if type(value) in (tuple, list):
        return {type(value).__name__: each(value)}
    if type(value) is dict:
        return {"dict": [each(item) for item in value.items()]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    number = next((i for i, known in enumerate(objects) if same_value(known, value)), len(objects))
    objects[number:] = objects[number:] or [value]
    return {"unwritten": f"a {type(value).__qualname__}", "number": number}


def value_from_json(data: Any) -> Any:
    """The value that `value_to_json` wrote; `Unwritten` for one that has no form there."""
    match data:
        case {"float": text}:
            return float(text)
        case {"tuple": values}:
            return tuple(map(value_from_json, values))
        case {"list": values}:
            return list(map(value_from_json, values))
        case {"dict": items}:
            return {value_from_json(key): value_from_json(value) for key, value in items}
        case {"dtype": name}:
            return getattr(torch, name)
        case {"device": name}:
            return torch.device(name)
        case {"unwritten": text, "number": number}:
            return Unwritten(text, number)
    return data


def _leaf_to_json(leaf: InputSpec | Fixed, objects: list[Any]) -> dict[str, Any]:
    if isinstance(leaf, Fixed):
        return {"name": leaf.name, "value": value_to_json(leaf.value, objects)}
    return {
        "name": leaf.name,
        "shape": list(leaf.shape),
        "dtype": str(leaf.dtype).removeprefix("torch."),
    }


def _leaf_from_json(data: Mapping[str, Any]) -> InputSpec | Fixed:
    if "dtype" in data:
        return InputSpec(data["name"], tuple(data["shape"]), getattr(torch, data["dtype"]))
    return Fixed(data["name"], value_from_json(data["value"]))


def _structure_to_json(structure: pytree.TreeSpec) -> Any:
    """None for a leaf; one of `tuple`, `list`, `dict`, `namedtuple` and `class` for what is nested."""
    if structure.is_leaf():
        return None
    parts = [_structure_to_json(child) for child in structure.children()]
    kind, keys = structure.type, keys_of(structure)
    if kind in (tuple, list):
        return {kind.__name__: parts}
    if keys is not None and kind in (dict, OrderedDict, defaultdict):
        return {"dict": [[value_to_json(key, []), part] for key, part in zip(keys, parts, strict=True)]}
    if kind is namedtuple:
        made = structure.context
        return {"namedtuple": _name_of(made), "fields": list(made._fields), "parts": parts}
    fields = keys or _fields(structure)
    empty = (
        [f.name for f in dataclasses.fields(kind) if f.name not in fields]
        if dataclasses.is_dataclass(kind)
        else []
    )
    return {
        "class": _name_of(kind),
        "context": value_to_json(structure.context, []),
        "fields": fields,
        "empty": empty,
        "parts": parts,
    }


def _fields(structure: pytree.TreeSpec) -> list[str]:
    """Names of the parts of a class: those of `pytree.register_dataclass`, or numbers."""
    match structure.context:
        case [[*names], [*_]] if len(names) == structure.num_children and all(
            isinstance(n, str) for n in names
        ):
            return names
    return [str(index) for index in range(structure.num_children)]


def _example(data: Any, *, returned: bool) -> Any:
    """Zeros nested as `data` says; `returned` tells results from arguments."""

    def parts(items: Iterable[Any]) -> list[Any]:
        return [_example(item, returned=returned) for item in items]

    match data:
        case {"tuple": items}:
            return tuple(parts(items))
        case {"list": items}:
            return parts(items)
        case {"dict": items}:
            return {value_from_json(key): _example(part, returned=returned) for key, part in items}
        case {"namedtuple": name, "fields": fields, "parts": items}:
            known = _imported(name)
            if getattr(known, "_fields", None) != tuple(fields):
                known = _named_tuple(re.split(r"[.:]", name)[-1], fields)
            return known(*parts(items))
        case {"class": name, "context": context, "fields": fields, "empty": empty, "parts": items}:
            node = pytree.SUPPORTED_NODES.get(_imported(name))
            if node is not None and "unwritten" not in str(context):
                return node.unflatten_fn(parts(items), value_from_json(context))
            named = dict(zip(fields, parts(items), strict=True))
            return Record(name.partition(":")[2], named | dict.fromkeys(empty)) if returned else named
    return 0


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _imported(name: str) -> Any:
    """The class of that name, where its module is imported already."""
    module, _, qualified = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, "__dict__", {}).get(part)
    return found if isinstance(found, type) else None
