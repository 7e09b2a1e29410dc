"""Measurements in processes of their own, each of which prints its answer as a last line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def answer(module: str, *arguments: Any, longest: float | None = None) -> dict[str, Any]:
    """What `python -m module` prints last; `failed` with the last line of its errors where it ends with one, or with
    how long it was waited for, `longest` seconds."""
    command = [sys.executable, "-W", "ignore", "-m", module, *map(str, arguments)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=longest)
    except subprocess.TimeoutExpired:
        return {"failed": f"took over {longest:.0f} s"}
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"failed": lines[-1][:300]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
