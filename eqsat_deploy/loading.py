"""An artifact read back: the engine that was saved, ready to run, or an error that says why not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from eqsat_deploy.artifact import ENGINE, WEIGHTS, read_manifest, verify
from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.errors import ArtifactError, EngineError, RegistrationError, UnknownNameError
from eqsat_deploy.targets import find_engine


def load(path: str | Path, engine: type[Engine] | None = None) -> Engine:
    """The engine that `save` wrote to `path`, ready to run, and called as the model was.

    Results of a class come back in it where its module is imported already; nothing is imported for the artifact's
    sake. Elsewhere they come back as `calling_json.Record`, with the class's fields as keys and attributes.

    `engine` is the class to load it with, by default that of the target of the manifest's name. Raises
    `ArtifactError`: not an artifact, a file missing or changed, made for another device or version by an
    engine that cannot move between them, or an engine this machine cannot run. An engine that can move warns.
    """
    path = Path(path)
    manifest = read_manifest(path)
    verify(path, manifest)
    try:
        kind = engine or find_engine(manifest["engine"])
        loaded = kind.load_files(
            path / ENGINE, Signature.from_json(manifest["signature"]), manifest.get("options", {})
        )
    except (EngineError, RegistrationError, UnknownNameError) as error:
        raise ArtifactError(
            f"{path} needs engine {manifest['engine']!r} ({manifest['versions']['engine']}, built on "
            f"{manifest['device']}): {error}"
        ) from error
    _check_origin(path, manifest, loaded)
    loaded.weights = load_file(path / WEIGHTS)
    loaded.report = manifest["report"]
    return loaded


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
