"""Where measurements are kept between runs: `EQSAT_DEPLOY_CACHE`, or `eqsat-deploy` in the user's cache directory.

All of it can be deleted at any time; what is missing is measured again.
"""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(*parts: str) -> Path:
    """A folder of the cache, which is made."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("EQSAT_DEPLOY_CACHE") or Path(home) / "eqsat-deploy")
    folder = root.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(path: Path, text: str) -> None:
    """Write a file in one step: whoever reads it meanwhile, and a run that ends meanwhile, has the old one or the new
    one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def workers() -> int:
    """How many CPUs this process may use, which what engines take depends on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
