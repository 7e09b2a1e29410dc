"""An artifact read back: the engine that was saved, ready to run, or an error that says why not."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from eqsat_deploy.artifact import BUCKETS, check_origin, opened
from eqsat_deploy.bucketed import AXIS, BucketedEngine, read_padding
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.errors import ArtifactError
from eqsat_deploy.manifest import WEIGHTS
from eqsat_deploy.targets import find_engine
from eqsat_extraction.arguments import instance


def load(path: str | Path, engine: type[Engine] | None = None) -> Engine | BucketedEngine:
    """What `save` wrote to `path`: an engine, or those for several lengths; see `load_engine`."""
    folder = Path(instance("path", path, str, Path))
    if engine is not None:
        instance("engine", engine, type)
    if not (folder / BUCKETS).exists():
        return load_engine(folder, engine)
    padding = read_padding(folder)
    engines = {size: load_engine(folder / str(size), engine) for size in padding.sizes}
    for size, each in engines.items():
        long = {spec.name for spec in each.signature.inputs if spec.shape[AXIS : AXIS + 1] == (size,)}
        if not set(padding.values) <= long or each.signature.call.outputs.num_leaves != len(padding.outputs):
            raise ArtifactError(f"{folder / BUCKETS} is not of the engine in {size}/; save it again")
    return BucketedEngine(padding, engines)


def load_engine(path: str | Path, engine: type[Engine] | None = None) -> Engine:
    """The engine that `save` wrote to `path`, ready to run, and called as the model was.

    Results of a class come back in it where its module is imported already; nothing is imported for the artifact's
    sake. Elsewhere they come back as `calling_json.Record`, with the class's fields as keys and attributes.

    `engine` is the class to load it with, by default that of the target of the manifest's name. Raises
    `ArtifactError`: not an artifact, a file missing or changed, made for another device or version by an
    engine that cannot move between them, or an engine this machine cannot run. An engine that can move warns.
    """
    with opened(path) as (saved, engine_files):
        manifest = saved.manifest
        try:
            engine = engine or find_engine(manifest.engine)  # imported while the files are hashed
            loaded = engine.load(engine_files, saved.signature, manifest.options)
        except ArtifactError:
            raise
        except Exception as error:  # whatever a runtime raises for files that it did not write
            raise ArtifactError(
                f"{saved.path} needs engine {manifest.engine!r} ({manifest.versions.engine}, built on "
                f"{manifest.device}): {error}"
            ) from error
        check_origin(saved.path, manifest, loaded.device, loaded.version, portable=loaded.portable)
    try:
        loaded.weights = load_file(saved.path / WEIGHTS) if WEIGHTS in manifest.files else {}
    except Exception as error:  # safetensors' own, and what a header of nonsense makes torch raise
        raise ArtifactError(
            f"{saved.path / WEIGHTS} cannot be read: {error}; save the artifact again"
        ) from error
    loaded.report = manifest.report
    return loaded
