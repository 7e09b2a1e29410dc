"""Where measurements are kept between runs: `EQSAT_DEPLOY_CACHE`, or `eqsat-deploy` in the user's cache directory.

Where the variable is empty, or nothing can be written there, nothing is kept for longer than this process. All of it
can be deleted at any time: what is missing is measured again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from eqsat_deploy.errors import EqsatError

VARIABLE = "EQSAT_DEPLOY_CACHE"


def root() -> Path | None:
    """The cache, which may not be there yet; None where nothing is to be kept."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named) if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqsat-deploy"


def cache_folder(*parts: str) -> Path:
    """A folder of the cache, which is made.

    Raises:
        EqsatError: nothing can be written, not even in a temporary folder.
    """
    named = root()
    for folder in filter(None, (named, Path(_of_this_process().name))):
        with suppress(OSError):
            folder = folder.joinpath(*parts)
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    raise EqsatError(f"{VARIABLE}={named}: neither there nor in a temporary folder can anything be written")


@cache
def _of_this_process() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="eqsat-deploy-")


def write(path: Path, content: str | bytes) -> None:
    """Write a file, text in UTF-8, in one step: whoever reads it meanwhile, and a run that ends meanwhile, has the old
    one or the new one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
