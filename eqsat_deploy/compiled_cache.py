"""Compiled models kept on disk, so that loading an artifact again compiles nothing.

One file for each: a hash of what follows, and what follows. Its name is a hash of everything that the compiled model
depends on, so that another model, runtime, processor or option finds nothing rather than something old. Files appear
under their name when they are whole, and what does not hash to what it says is not read: any number of processes may
use a folder at once, and one may stop at any moment.

`eqsat_deploy.cache` says where.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any

from eqsat_deploy.cache import root
from eqsat_deploy.hashing import of_bytes
from eqsat_deploy.processors import available, cpu

MOST = 4 << 30
"""Bytes of a folder, above which what was used longest ago is removed."""
DIGEST = hashlib.sha256().digest_size


def folder() -> Path | None:
    """Where compiled models are kept; None where they are not."""
    named = root()
    return named and named / "compiled"


def key(**facts: Any) -> str:
    """What a compiled model that depends on these facts, which are JSON values, and on this machine is called."""
    written = json.dumps({**facts, "machine": _machine()}, sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()


def read(name: str) -> memoryview | None:
    """What was written under `name`, mapped; None where nothing was, or it is damaged. It may be written to, which
    changes no file."""
    if (where := folder()) is None:
        return None
    with suppress(OSError, ValueError):  # an empty file cannot be mapped
        file = where / f"{name}.blob"
        with file.open("rb") as stream:
            # Files are replaced and removed, never changed, so what is mapped stays what it is.
            content = memoryview(mmap(stream.fileno(), 0, access=ACCESS_COPY))
        if of_bytes(content[DIGEST:]) == content[:DIGEST]:
            os.utime(file)
            return content[DIGEST:]
    return None


def write(name: str, content: bytes) -> None:
    """Keep `content` under `name`. Where that cannot be written, the next one compiles again: no error."""
    if (where := folder()) is None:
        return
    with suppress(OSError):
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        number, partial = tempfile.mkstemp(dir=where)
        try:
            with os.fdopen(number, "wb") as stream:
                stream.write(of_bytes(memoryview(content)))
                stream.write(content)
            os.replace(partial, where / f"{name}.blob")
        except BaseException:
            os.unlink(partial)
            raise
        _prune(where)


def _prune(where: Path) -> None:
    found = sorted(((f.stat().st_mtime, f.stat().st_size, f) for f in where.glob("*.blob")), reverse=True)
    total = 0
    for _, size, file in found:
        total += size
        if total > MOST:
            file.unlink(missing_ok=True)


def _machine() -> Mapping[str, Any]:
    """What kernels are chosen by: virtual machines call processors that differ in instructions by one name."""
    return {"kind": platform.machine(), "cpus": available(), "flags": sorted(cpu()[1])}
