"""An engine on disk: a directory of its files, the module's weights and a manifest; no pickle in it.

model.eqsat/
    manifest.json         format, engine, versions, device, how it is called, report, hash of every other file
    weights.safetensors   parameters and buffers of the module the engine was built from
    engine/               what the engine itself wrote
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from eqsat_deploy.deployment import Signature
from eqsat_deploy.errors import ArtifactError, EqsatError

FORMAT = 2
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
ENGINE = "engine"


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


def save(engine: Saved, path: str | Path) -> None:
    """Write `engine` to the directory `path`, replacing an artifact that is there.

    Everything is written to a hidden sibling first and renamed at the end, so that `path` never holds half an
    artifact, whatever interrupts. Raises `ArtifactError`: `path` holds something else, the disk is full, the
    folder is read-only, or the report or an option is not JSON.
    """
    path = Path(path)
    check_target(path)
    with _sibling(path) as folder:
        (folder / ENGINE).mkdir()
        engine.save_files(folder / ENGINE)
        # safetensors refuses tensors that share memory; tied weights are written once each.
        save_file({name: value.cpu().clone() for name, value in engine.weights.items()}, folder / WEIGHTS)
        manifest = {
            "format": FORMAT,
            "engine": engine.name,
            "versions": _versions(engine),
            "device": engine.device,
            "signature": engine.signature.to_json(),
            "options": dict(engine.options),
            "report": engine.report,
            "files": {
                file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": _sha256(file)}
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            },
        }
        try:
            text = json.dumps(manifest, indent=2, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: the report or an option is not JSON: {error}") from error
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def check_target(path: Path) -> None:
    """Whether an artifact can be saved at `path`, as far as can be told beforehand; `ArtifactError` says why not."""
    if (path.exists() or path.is_symlink()) and not _replaceable(path):
        raise ArtifactError(f"{path} exists and is not an artifact: choose another path or remove it")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ArtifactError(
            f"cannot write beside {path}: {path.parent} is not a folder that can be written to"
        )


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of the artifact at `path`; `ArtifactError` if there is none that this version can read."""
    file = Path(path) / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(f"{path} is not an artifact: {error}; save one with engine.save(path)") from error
    except ValueError as error:
        raise ArtifactError(f"{file} is damaged ({error}): copy or save the artifact again") from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise ArtifactError(
            f"{file} has format {found}, this version reads {FORMAT}: "
            "load it with the eqsat-deploy that saved it, or save it again"
        )
    return manifest


def verify(path: str | Path, manifest: dict[str, Any]) -> None:
    """Check every file against the manifest; `ArtifactError` names one that is missing or changed."""
    path = Path(path)
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise ArtifactError(f"{path / MANIFEST} names {name!r}, which is outside the artifact")
        if not file.is_file():
            raise ArtifactError(f"{file} is missing: copy the whole directory again")
        if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise ArtifactError(
                f"{file} is not what was saved (SHA-256 differs): copy or save the artifact again"
            )
    if WEIGHTS not in manifest["files"]:
        raise ArtifactError(f"{path / MANIFEST} lists no {WEIGHTS}: save the artifact again")


def _versions(engine: Saved) -> dict[str, str]:
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


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
