"""SHA-256 of files and of bytes, in threads: hashing waits for no interpreter, and a machine has more than one core."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from eqsat_deploy.processors import available

CHUNK = 1 << 20
"""Bytes that are read at once: as many as stay in a core's cache until they are hashed."""
PIECE = 32 << 20
"""Bytes that one thread hashes of many."""


@dataclass(frozen=True)
class CheckedFiles:
    """Files of a folder that are being checked: what they have to be is known meanwhile.

    Attributes:
        hashes: of the files, by their paths in the folder.
        folder: waits until the files are checked, and says where they are; `ArtifactError` where one is damaged.
    """

    hashes: Mapping[str, str]
    folder: Callable[[], Path]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Those of `folder`, taken as they are."""
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        with hashing(files) as hashes:
            found = {
                file.relative_to(folder).as_posix(): each.result()
                for file, each in zip(files, hashes, strict=True)
            }
        return cls(found, lambda: folder)


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
    with ThreadPoolExecutor(available()) as pool:
        yield [pool.submit(sha256, file) for file in files]


def of_bytes(content: memoryview) -> bytes:
    """A hash of the hashes of pieces."""
    pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
    with ThreadPoolExecutor(available()) as pool:
        found = pool.map(lambda piece: hashlib.sha256(piece).digest(), pieces)
        return hashlib.sha256(b"".join(found)).digest()
