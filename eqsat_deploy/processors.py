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


def description(name: str, *facts: str) -> str:
    """A processor as artifacts have it: what computes the same has the same."""
    known = (platform.machine(), *facts, *(("INT8 added in 16 bits",) if saturating() else ()))
    return f"{name} ({', '.join(known)})"


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


def named() -> str | None:
    """The kind of CPU that engines are to run on, where the environment variable EQSAT_DEPLOY_CPU says so."""
    return os.environ.get("EQSAT_DEPLOY_CPU") or None


def saturating() -> bool:
    """Whether INT8 kernels add the products of unsigned and signed bytes two by two in 16 bits, which saturate, as
    x86's VPMADDUBSW does: they do where there is no instruction that adds four of them in 32 bits (VNNI). True as well
    where the CPU that is `named` is such a one.

    Of OpenVINO 2026.4.1 (oneDNN) and ONNX Runtime 1.32 it was seen on an AMD Zen 3. Signed activations are shifted by
    128 there, and saturate like unsigned ones; depthwise convolutions add in 32 bits.
    """
    if named() == "avx2":
        return True
    _, features = cpu()
    return "avx2" in features and not features & {"avx512_vnni", "avx_vnni"}
