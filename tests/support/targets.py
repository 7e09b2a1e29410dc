"""Targets registered for a test, through entry points as a plugin's would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from eqsat_deploy.engines import Engine
from eqsat_deploy.targets import TARGETS, IntegerGrid, Target
from eqsat_extraction import registry

Register = Callable[..., None]


def target(
    name: str,
    *,
    rank: int = 50,
    cost_models: tuple[str, ...] = ("kernels",),
    lacks: str | None = None,
    **facts: Any,
) -> Target:
    """A target whose engine can say whether it is there, and no more."""
    members = {
        "name": name,
        "unavailable": classmethod(lambda cls: lacks),
        "__abstractmethods__": frozenset(),
    }
    return Target(type("Fake", (Engine,), members), cost_models, rank, IntegerGrid(), **facts)


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Replaces the installed targets by those given: a `Target`, or where an entry point leads."""

    def replace(names: Mapping[str, str] | None = None, **given: Target | str) -> None:
        homes: dict[str, Target] = {}
        entries = []
        for key, found in given.items():
            value = found if isinstance(found, str) else f"somebody.{key}:TARGET"
            if isinstance(found, Target):
                homes[value] = found
            entries.append(EntryPoint((names or {}).get(key, key), value, TARGETS.group))
        installed, load = registry.entry_points, EntryPoint.load
        monkeypatch.setattr(
            registry,
            "entry_points",
            lambda group: entries if group == TARGETS.group else installed(group=group),
        )
        monkeypatch.setattr(
            EntryPoint, "load", lambda self: homes[self.value] if self.value in homes else load(self)
        )

    return replace
