"""SHA-256 of files and of bytes, in threads: hashing waits for no interpreter, and a machine has more than one core."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from eqsat_deploy.processors import available

CHUNK = 1 << 20
"""Bytes that are read at once: as many as stay in a core's cache until they are hashed."""
PIECE = 32 << 20
"""Bytes that one thread hashes of many."""

_known: ContextVar[Mapping[Path, Future[str]]] = ContextVar("_known", default={})  # noqa: B039  (nobody changes it)


def sha256(file: Path) -> str:
    """That of a file's content, in hexadecimal digits."""
    found, buffer = hashlib.sha256(), bytearray(CHUNK)
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(buffer):
            found.update(memoryview(buffer)[:size])
    return found.hexdigest()


@contextmanager
def hashing(files: Iterable[Path]) -> Iterator[list[Future[str]]]:
    """The hashes to be of files; they go on while the block does something else."""
    known = _known.get()
    with ThreadPoolExecutor(available()) as pool:
        yield [known.get(file) or pool.submit(sha256, file) for file in files]


@contextmanager
def remembered(hashes: Mapping[Path, Future[str]]) -> Iterator[None]:
    """What is hashed already, or being so, is not hashed again in the block."""
    token = _known.set(hashes)
    try:
        yield
    finally:
        _known.reset(token)


def of_bytes(content: memoryview) -> bytes:
    """A hash of the hashes of pieces."""
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    with ThreadPoolExecutor(available()) as pool:
        found = pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces)
        return hashlib.sha256(b"".join(found)).digest()
