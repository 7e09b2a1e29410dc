"""The processors of this machine: what they are, and how many an engine may use."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eqsat_extraction.arguments import whole


def available() -> int:
    """How many CPUs this process may use, which what engines take depends on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads(options: Mapping[str, Any]) -> int:
    """The option `threads`, at most the CPUs of this machine: an artifact may be of a larger one, and one that asks
    for thousands would make them. 0 where it is left to the runtime.

    Raises:
        InputError: it is no whole number.
    """
    return min(whole("threads", options.get("threads", 0), least=0), os.cpu_count() or 1)


def cpu() -> tuple[str, set[str]]:
    """Its name and the flags of its features, as Linux lists them; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor(), set()
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip().lower(), value.strip())
    return fields.get("model name", ""), set(fields.get("flags", fields.get("features", "")).split())
