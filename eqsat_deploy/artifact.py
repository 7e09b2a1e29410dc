"""An engine on disk: a directory of its files and a manifest; no pickle in it.

model.eqsat/
    manifest.json         format, engine, versions, device, how it is called, report, size and hash of every other file
    manifest.json.sha256  its own hash, as `sha256sum -c` reads it
    engine/               what the engine itself wrote
    weights.safetensors   parameters and buffers of the module the engine was built from, where they were asked for: the
                          engine has its own, in INT8, and these take four times as much

Hashes find what was damaged or mixed up on the way, not what somebody changed on purpose who changed them, too.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from eqsat_deploy.errors import ArtifactError, EqsatError
from eqsat_deploy.hashing import CheckedFiles, hashing, sha256
from eqsat_deploy.manifest import ENGINE, FORMAT, WEIGHTS, File, Manifest, decode, encode
from eqsat_deploy.processors import saturating
from eqsat_extraction.cautions import caution

if TYPE_CHECKING:
    from torch import Tensor

    from eqsat_deploy.deployment import Signature

MANIFEST = "manifest.json"
SUM = "manifest.json.sha256"
BUCKETS = "buckets.json"
"""In a folder with artifacts for several lengths of inputs (`bucketed`)."""
LARGEST_MANIFEST = 64 << 20
AGAIN = "copy or save the artifact again"


class Saved(Protocol):
    """What an artifact holds of an engine."""

    signature: Signature
    weights: Mapping[str, Tensor]
    report: dict[str, Any] | None
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the engine is found by."""
        ...

    @property
    def device(self) -> str:
        """The processor it is compiled for."""
        ...

    @property
    def version(self) -> str:
        """The runtime's version."""
        ...

    def save_files(self, folder: Path) -> None:
        """Write the engine's own files into an existing, empty folder."""
        ...


def save(engine: Saved, path: str | Path, files: Path | None = None, *, weights: bool = False) -> None:
    """Write `engine` to the directory `path`, replacing an artifact that is there; with the content of `files`, which
    is moved, where its `save_files` was called already, and with the `weights` of its module, to go on with.

    Everything is written to a hidden sibling first and renamed at the end, so that `path` never holds half an
    artifact, whatever interrupts. Raises `ArtifactError`: `path` holds something else, the disk is full, the
    folder is read-only, the report or an option is not JSON, or there are no weights.
    """
    from safetensors.torch import save_file

    path = Path(path)
    check_target(path)
    if weights and not engine.weights:
        raise ArtifactError(
            f"weights=True: there are none to write to {path}, as of an engine loaded from an artifact without them"
        )
    with _sibling(path) as folder:
        if files is not None:
            files.rename(folder / ENGINE)
        else:
            (folder / ENGINE).mkdir()
            engine.save_files(folder / ENGINE)
        if weights:
            # safetensors refuses tensors that share memory, and transposed ones; tied weights are written once each.
            own = {name: value.cpu().contiguous().clone() for name, value in engine.weights.items()}
            save_file(own, folder / WEIGHTS)
        manifest = {
            "format": FORMAT,
            "engine": engine.name,
            "versions": _versions(engine),
            "device": engine.device,
            "signature": engine.signature.to_json(),
            "options": dict(engine.options),
            "report": engine.report,
            "files": {
                file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            },
        }
        text = encode(manifest, path / MANIFEST)
        (folder / MANIFEST).write_bytes(text)
        (folder / SUM).write_text(_sum(text))
        for file in folder.rglob("*"):
            if file.is_file():  # safetensors, for one, lets nobody else read what it writes
                shutil.copymode(folder / SUM, file)


def check_target(path: Path) -> None:
    """Whether an artifact can be saved at `path`, as far as can be told beforehand; `ArtifactError` says why not."""
    if (path.exists() or path.is_symlink()) and not _replaceable(path):
        raise ArtifactError(f"{path} exists and is not an artifact: choose another path or remove it")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ArtifactError(
            f"cannot write beside {path}: {path.parent} is not a folder that can be written to"
        )


@dataclass(frozen=True)
class Artifact:
    """What an artifact says of itself, checked; its files are those that it lists."""

    path: Path
    manifest: Manifest
    signature: Signature


def read(path: str | Path) -> Artifact:
    """The artifact at `path`: everything that can be known of it without its engine, checked; raises as `opened`."""
    with opened(path) as (saved, _):
        return saved


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[Artifact, CheckedFiles]]:
    """`read`, while the block does something else: it ends when all files are checked. With the artifact come the
    engine's files.

    Sizes are compared before anything is hashed, and hashes before anything is read. Files beside those of an
    artifact are ignored and never read; one that is not listed among the engine's own is an error.

    Raises:
        ArtifactError: no artifact, damaged, incomplete, or of another format; the message has the file and the key.
    """
    from eqsat_deploy.deployment import Signature

    path = Path(path)
    with checking(path) as (manifest, written, engine_files):
        try:
            signature = Signature.from_json(written)
        except Exception as error:  # a class that the schema knows by name only refuses what it is given
            raise ArtifactError(f"{path / MANIFEST}: signature: {error}; save the artifact again") from error
        yield Artifact(path, manifest, signature), engine_files


@contextmanager
def checking(path: Path) -> Iterator[tuple[Manifest, dict[str, Any], CheckedFiles]]:
    """The manifest of the artifact at `path`, its signature as JSON, and the engine's files; all are checked when the
    block ends. Needs no torch; raises as `opened` does."""
    try:
        manifest, signature = decode(_manifest(path), path / MANIFEST)
        _check_sizes(path, manifest.files)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}; {AGAIN}") from error
    names = sorted(manifest.files, key=WEIGHTS.__eq__)  # the weights last
    files = [path / name for name in names]
    with hashing(files) as hashes:
        found = dict(zip(names, hashes, strict=True))
        own = {name: hashed for name, hashed in found.items() if name != WEIGHTS}

        def folder() -> Path:
            _check_hashes(path, manifest.files, own)
            return path / ENGINE

        stated = {name.removeprefix(f"{ENGINE}/"): manifest.files[name].sha256 for name in own}
        yield manifest, signature, CheckedFiles(stated, folder)
        _check_hashes(path, manifest.files, found)


def read_checked(path: Path) -> tuple[Manifest, dict[str, Any]]:
    """The manifest of the artifact at `path` and its signature as JSON, after its files were checked; needs no torch,
    and raises as `opened` does."""
    with checking(path) as (manifest, signature, _):
        return manifest, signature


def check_origin(path: Path, manifest: Manifest, device: str, version: str, *, portable: bool) -> None:
    """Whether the engine of the artifact at `path`, which would run on `device` in `version` of its runtime, was built
    there; a warning where it was not, `ArtifactError` where it is not `portable`."""
    differences = [
        f"{what}: saved {then}, here {now}"
        for what, then, now in (
            ("device", manifest.device, device),
            ("runtime", manifest.versions.engine, version),
        )
        if then != now
    ]
    if not differences:
        return
    message = f"{path} was built elsewhere ({'; '.join(differences)})"
    rebuild = f"build it again on this machine with `{manifest.rebuild(path)}`"
    if not portable:
        raise ArtifactError(f"{message}: {rebuild}, or install the version it was built with")
    doubt = ", where INT8 made for another may saturate (`eqsat-deploy verify` tells)" if saturating() else ""
    caution(f"{message}: it runs, but was not tuned for this machine{doubt}; {rebuild}")


def _manifest(path: Path) -> bytes:
    file = path / MANIFEST
    if (path / BUCKETS).exists() and not file.exists():
        one = next((each.parent for each in sorted(path.glob(f"*/{MANIFEST}"))), path)
        raise ArtifactError(
            f"{path} holds engines for several lengths of inputs: load them with torch, or one of them, such as {one}"
        )
    if not path.is_dir() or not file.exists():
        raise ArtifactError(
            f"{path} is not an artifact: it has no {MANIFEST}; save one with engine.save(path)"
        )
    if _size(file) > LARGEST_MANIFEST:
        raise ArtifactError(f"{file} is damaged (over {LARGEST_MANIFEST >> 20} MiB): {AGAIN}")
    text = file.read_bytes()
    if not (path / SUM).exists():
        raise ArtifactError(
            f"{path} has no {SUM}: it is incomplete, or of a format before {FORMAT}; save the artifact again"
        )
    if _size(path / SUM) != len(_sum(b"")) or (path / SUM).read_bytes() != _sum(text).encode():
        raise ArtifactError(f"{file} is damaged (it is not what {SUM} says): {AGAIN}")
    return text


def _check_sizes(path: Path, files: Mapping[str, File]) -> None:
    for name, expected in files.items():
        if not os.path.lexists(path / name):
            raise ArtifactError(f"{path / name} is missing: copy the whole directory again")
        if (size := _size(path / name)) != expected.bytes:
            raise ArtifactError(
                f"{path / name} is not what was saved ({size} bytes, not {expected.bytes}): {AGAIN}"
            )
    for found in (path / ENGINE, *(path / ENGINE).rglob("*")):
        listed = found.is_dir() or found.relative_to(path).as_posix() in files
        if found.is_symlink() or not listed:
            raise ArtifactError(f"{found} is a link or not listed in {MANIFEST}: remove it, or {AGAIN}")


def _check_hashes(path: Path, files: Mapping[str, File], found: Mapping[str, Future[str]]) -> None:
    for name, hashed in found.items():
        try:
            same = hashed.result() == files[name].sha256
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error}; {AGAIN}") from error
        if not same:
            raise ArtifactError(f"{path / name} is not what was saved (SHA-256 differs): {AGAIN}")


def _size(file: Path) -> int:
    """Bytes of a plain file; `ArtifactError` for a link, a folder, a pipe or a device."""
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ArtifactError(f"{file} is a link or no file: {AGAIN}, with the file itself in its place")
    return found.st_size


def _sum(text: bytes) -> str:
    return f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n"


def _versions(engine: Saved) -> dict[str, str]:
    import torch

    try:
        own = package_version("eqsat-deploy")
    except PackageNotFoundError:
        own = "not installed"
    return {
        "eqsat_deploy": own,
        "engine": engine.version,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _replaceable(path: Path) -> bool:
    return path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir()))


@contextmanager
def _sibling(path: Path) -> Iterator[Path]:
    """A new folder: takes the name `path` when the block succeeds, vanishes when it does not."""
    try:
        private = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise ArtifactError(f"cannot write beside {path}: {error}") from error
    folder = private / path.name
    try:
        folder.mkdir()  # unlike mkdtemp, with the permissions that the caller's umask leaves
        yield folder
        _replace(folder, path)
    except EqsatError:
        raise
    except Exception as error:  # a full disk is OSError, RuntimeError or SafetensorError, by who writes
        raise ArtifactError(f"cannot write {path}: {error}; nothing was saved") from error
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _replace(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`; what is there is moved aside first and put back if the rename fails."""
    if not path.exists():
        folder.rename(path)
        return
    aside = folder.parent.with_name(f"{folder.parent.name}-replaced")  # outlives the private folder
    path.rename(aside)
    try:
        folder.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)
