"""What stands in for a class that is not known here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Record(dict[str, Any]):
    """What the model returned in a class that is not known here: its fields, as keys and as attributes."""

    def __init__(self, kind: str, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.__dict__["kind"] = kind

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"{self.__dict__.get('kind')} has no field {name!r}, but {list(self)}"
            ) from None

    def __repr__(self) -> str:
        return f"{self.__dict__['kind']}({', '.join(f'{name}={value!r}' for name, value in self.items())})"
