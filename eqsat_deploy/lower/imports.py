"""ATen calls as operators of the language: which importer takes a call, and with which arguments."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from eqsat_deploy.calling import same_value
from eqsat_deploy.capture.functional import schema_of
from eqsat_deploy.language import IMPORTERS
from eqsat_deploy.language.operator import Importer, Unsupported


def importer_of(target: Any) -> Importer | None:
    """What imports calls of `target`: an in-place overload as the functional one."""
    schema = schema_of(target)
    if schema is None:
        return None
    namespace, _, base = schema.name.partition("::")
    if namespace != "aten":
        return IMPORTERS.get(schema.name)
    overload = schema.overload_name or "default"
    return IMPORTERS.get(f"{base}.{overload}") or IMPORTERS.get(f"{base.removesuffix('_')}.{overload}")


def import_call(importer: Importer, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `importer` makes of a call. It gets every argument of the schema, defaults filled in; those that it has no
    parameter for must be the defaults.

    Raises:
        Unsupported: they are not, or the importer does not model the call.
    """
    arguments = schema_of(target).arguments
    given = dict(zip((a.name for a in arguments), args, strict=False)) | kwargs
    values = {a.name: given.get(a.name, a.default_value) for a in arguments}
    if schema_of(target).name.startswith("eqsat_deploy::"):
        return importer(**values)
    positional, named = _taken(importer)
    by_position: list[Any] = []
    by_name: dict[str, Any] = {}
    for declared in arguments:
        value = values[declared.name]
        if not declared.kwarg_only and (positional is None or len(by_position) < positional):
            by_position.append(value)
        elif declared.kwarg_only and (named is None or declared.name in named):
            by_name[declared.name] = value
        elif not same_value(value, declared.default_value):
            raise Unsupported(f"argument {declared.name!r}")
    return importer(*by_position, **by_name)


@cache
def _taken(importer: Importer) -> tuple[int | None, frozenset[str] | None]:
    """How many arguments an importer takes by position, and which by name; None for any."""
    parameters = inspect.signature(importer).parameters.values()
    kinds = {p.kind for p in parameters}
    by_position = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = frozenset(p.name for p in parameters)
    return (
        None if inspect.Parameter.VAR_POSITIONAL in kinds else len(by_position),
        None if inspect.Parameter.VAR_KEYWORD in kinds else names,
    )
