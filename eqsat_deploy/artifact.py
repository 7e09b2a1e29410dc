"""An engine on disk: a directory of its files, the module's weights and a manifest; no pickle in it.

model.eqsat/
    manifest.json         format, engine, versions, device, signature, report, hash of every other file
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
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.base import Engine, find_engine
from eqsat_deploy.errors import ArtifactError, EngineError, EqsatError, UnknownNameError

FORMAT = 1
MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
ENGINE = "engine"


def save(engine: Engine, path: str | Path) -> None:
    """Write `engine` to the directory `path`, replacing an artifact that is there.

    Everything is written to a hidden sibling first and renamed at the end, so that `path` never holds half an
    artifact, whatever interrupts. Raises `ArtifactError`: `path` holds something else, the disk is full, the
    folder is read-only, or the report is not JSON.
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
            raise ArtifactError(f"{path}: the report is not JSON: {error}") from error
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def check_target(path: Path) -> None:
    """Whether an artifact can be saved at `path`, as far as can be told beforehand; `ArtifactError` says why not."""
    if (path.exists() or path.is_symlink()) and not _replaceable(path):
        raise ArtifactError(f"{path} exists and is not an artifact: choose another path or remove it")
    if not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
        raise ArtifactError(
            f"cannot write beside {path}: {path.parent} is not a folder that can be written to"
        )


def load(path: str | Path, engine: type[Engine] | None = None) -> Engine:
    """The engine that `save` wrote to `path`, ready to run.

    `engine` is the class to load it with, by default the one registered under the manifest's name. Raises
    `ArtifactError`: not an artifact, a file missing or changed, made for another device or version by an
    engine that cannot move between them, or an engine this machine cannot run. An engine that can move warns.
    """
    path = Path(path)
    manifest = read_manifest(path)
    verify(path, manifest)
    try:
        kind = engine or find_engine(manifest["engine"])
        loaded = kind.load_files(path / ENGINE, Signature.from_json(manifest["signature"]))
    except (EngineError, UnknownNameError) as error:
        raise ArtifactError(
            f"{path} needs engine {manifest['engine']!r} ({manifest['versions']['engine']}, built on "
            f"{manifest['device']}): {error}"
        ) from error
    _check_origin(path, manifest, loaded)
    loaded.weights = load_file(path / WEIGHTS)
    loaded.report = manifest["report"]
    return loaded


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


def _versions(engine: Engine) -> dict[str, str]:
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


def _check_origin(path: Path, manifest: dict[str, Any], engine: Engine) -> None:
    differences = [
        f"{what}: saved {saved}, here {here}"
        for what, saved, here in (
            ("device", manifest["device"], engine.device),
            ("runtime", manifest["versions"]["engine"], engine.version),
        )
        if saved != here
    ]
    if not differences:
        return
    message = f"{path} was built elsewhere ({'; '.join(differences)})"
    if not engine.portable:
        raise ArtifactError(
            f"{message}: build it again on this machine, or install the version it was built with"
        )
    warnings.warn(f"{message}: it runs, but was not tuned for this machine", stacklevel=3)


def _replaceable(path: Path) -> bool:
    return path.is_dir() and ((path / MANIFEST).is_file() or not any(path.iterdir()))


@contextmanager
def _sibling(path: Path) -> Iterator[Path]:
    """A new folder beside `path`: takes its name when the block succeeds, vanishes when it does not."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise ArtifactError(f"cannot write beside {path}: {error}") from error
    try:
        folder.chmod(0o777 & ~_umask())
        yield folder
        _replace(folder, path)
    except EqsatError:
        raise
    except Exception as error:  # a full disk is OSError, RuntimeError or SafetensorError, by who writes
        raise ArtifactError(f"cannot write {path}: {error}; nothing was saved") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(folder: Path, path: Path) -> None:
    """Rename `folder` to `path`; what is there is moved aside first and put back if the rename fails."""
    if not path.exists():
        folder.rename(path)
        return
    aside = folder.with_name(folder.name + "-replaced")
    path.rename(aside)
    try:
        folder.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
