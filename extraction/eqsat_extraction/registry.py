"""What is found by name: entry points of one group, of whoever installed them.

Built-in ones register through the same entry points as anybody else's. Finding one imports no other.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.metadata import EntryPoint
from typing import Any, Generic, TypeVar

from .errors import RegistrationError, UnknownNameError

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The entry points of `group`, each of which is a `kind` or a callable that makes one.

    `fits` says whether an object is one, and `needs` what it has to have, for the message where it is not.
    """

    group: str
    kind: str
    fits: Callable[[object], bool]
    needs: str

    def entries(self) -> dict[str, EntryPoint]:
        """The entry points by name, in alphabetical order, not yet imported.

        Raises:
            RegistrationError: two packages register one name; the message names both.
        """
        found: dict[str, EntryPoint] = {}
        for entry in entry_points(group=self.group):
            other = found.setdefault(entry.name, entry)
            if other != entry:
                raise RegistrationError(
                    f"two {self.kind}s are called {entry.name!r}: {_origin(other)} and {_origin(entry)}; uninstall one "
                    "of the packages or rename its entry point"
                )
        return dict(sorted(found.items()))

    def known(self, name: str) -> EntryPoint:
        """The entry point called `name`, not imported.

        Raises:
            UnknownNameError: none is called so; the message lists near misses.
            RegistrationError: nothing is registered.
        """
        known = self.entries()
        if not known:
            raise RegistrationError(
                f"no {self.kind} is registered: entry points exist only for installed packages; pip install "
                "eqsat-deploy, or `pip install -e .` in the checkout"
            )
        if name not in known:
            raise UnknownNameError(self.kind, name, known)
        return known[name]

    def find(self, name: str, **options: Any) -> T:
        """The one called `name`, made with `options` where its entry point is a callable that makes it.

        Raises:
            UnknownNameError, RegistrationError: as for `known`; or its entry point cannot be imported, or is
                something else.
        """
        entry = self.known(name)
        try:
            found = entry.load()
        except Exception as error:  # whatever importing somebody's module raises
            raise RegistrationError(
                f"{self.kind} {name!r} ({_origin(entry)}) cannot be imported: {error}"
            ) from error
        if not self.fits(found) and callable(found):
            found = found(**options)
        if not self.fits(found):
            raise RegistrationError(
                f"{self.kind} {name!r} ({_origin(entry)}) is a {type(found).__name__}: it needs {self.needs}"
            )
        return found  # type: ignore[no-any-return]


def entry_points(group: str) -> Iterable[EntryPoint]:
    """Those of `group` that are installed, read again where something was installed since."""
    installed = _installed(tuple((path, _changed(path)) for path in sys.path))
    return [entry for entry in installed if entry.group == group]


@lru_cache(maxsize=1)
def _installed(paths: tuple[tuple[str, float], ...]) -> Sequence[EntryPoint]:
    """All entry points: each reading goes through the metadata of every package."""
    groups = metadata.entry_points()
    return [entry for group in groups.groups for entry in groups.select(group=group)]


def _changed(path: str) -> float:
    try:
        return os.stat(path or ".").st_mtime
    except OSError:
        return 0.0


def _origin(entry: EntryPoint) -> str:
    return f"{entry.value} of {entry.dist.name}" if entry.dist is not None else entry.value
