"""Files of several OpenVINO models with the constants of all, equal ones once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PLACE = re.compile(r'offset="(\d+)" size="(\d+)"')
ALIGNED = 64  # bytes


def join_constants(folders: Sequence[Path]) -> None:
    """Give each `model.xml` in `folders` a `model.bin` that is the same in all, and its constants' places in that."""
    joined = bytearray()
    places: dict[bytes, int] = {}

    for folder in folders:
        constants = (folder / "model.bin").read_bytes()

        def moved(found: re.Match[str], constants: bytes = constants) -> str:
            offset, size = map(int, found.groups())
            content = constants[offset : offset + size]
            if content not in places:
                joined.extend(bytes(-len(joined) % ALIGNED))
                places[content] = len(joined)
                joined.extend(content)
            return f'offset="{places[content]}" size="{size}"'

        text = (folder / "model.xml").read_text()
        (folder / "model.xml").write_text(PLACE.sub(moved, text))
    for folder in folders:
        (folder / "model.bin").write_bytes(joined)
