"""From the lane's file to a plan: its types as they are written, its batch profiles, and what is known from before."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import cuda

from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.tensorrt_api import tensorrt
from eqsat_deploy.engines.tensorrt_callbacks import Report, error_recorder, monitor
from eqsat_deploy.errors import EngineError, InputError
from eqsat_deploy.stages import Stages
from eqsat_extraction.arguments import whole

if TYPE_CHECKING:
    import tensorrt as trt

OPTIONS = ("level", "workspace", "refit", "profiles", "timing_cache", "engine_cache", "progress")
WORKSPACE = 4 << 30
LEVELS = 5
Shape = tuple[int, ...]


def build_plan(model: bytes, signature: Signature, options: Mapping[str, Any]) -> bytes:
    """The serialized engine for an ONNX file; `EngineError` carries what parser and builder reported.

    Raises:
        InputError: an option is of the wrong kind or size.
    """
    api = tensorrt()
    errors = error_recorder(api)
    logger: trt.Logger = api.Logger(api.Logger.WARNING)
    builder: trt.Builder = api.Builder(logger)
    builder.error_recorder = errors
    # Needed by 10.x, accepted and without effect in 11.x.
    strong = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: trt.INetworkDefinition = builder.create_network(strong)
    parser: trt.OnnxParser = api.OnnxParser(network, logger)
    if not parser.parse(decomposable(model)):
        found = "; ".join(_parser_error(parser.get_error(index)) for index in range(parser.num_errors))
        raise EngineError(f"TensorRT {api.__version__} does not read the model: {found}")
    config: trt.IBuilderConfig = builder.create_builder_config()
    workspace = whole("workspace", options.get("workspace", WORKSPACE))
    config.set_memory_pool_limit(api.MemoryPoolType.WORKSPACE, workspace)
    config.profiling_verbosity = api.ProfilingVerbosity.DETAILED  # the inspector then says types and formats
    if "level" in options:
        config.builder_optimization_level = level_of(options["level"])
    if options.get("refit"):
        config.set_flag(api.BuilderFlag.REFIT)
    for shapes in profile_shapes(signature, options.get("profiles", ())):
        profile: trt.IOptimizationProfile = builder.create_optimization_profile()
        for name, (least, typical, most) in shapes.items():
            profile.set_shape(name, least, typical, most)
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"TensorRT refuses the sizes {shapes}. {errors.said()}")
    cache_file = cache_path(options.get("timing_cache"), _timing_cache(api), default=True)
    if cache_file is not None:
        known = cache_file.read_bytes() if cache_file.is_file() else b""
        cache: trt.ITimingCache = config.create_timing_cache(known)
        # A cache of another version or GPU is refused; the build then measures everything.
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, ignore_mismatch=False)
            errors.said()
    with ExitStack() as phases:
        watch = monitor(api, _reporter(options.get("progress"), phases))
        config.progress_monitor = watch
        plan: trt.IHostMemory | None = builder.build_serialized_network(network, config)
    if watch.raised is not None:
        raise watch.raised
    if plan is None:
        raise EngineError(f"TensorRT {api.__version__} cannot build the engine. {errors.said()}")
    if cache_file is not None:
        measured: trt.ITimingCache = config.get_timing_cache()
        write(cache_file, bytes(measured.serialize()))
    return bytes(plan)


def profile_shapes(signature: Signature, sizes: Sequence[int]) -> list[dict[str, tuple[Shape, Shape, Shape]]]:
    """For each profile the least, typical and greatest shape of every input with a batch axis: of the whole range of
    batch sizes first, then of each of `sizes` alone. None where no input has a batch axis.

    Raises:
        InputError: one of `sizes` is outside the range.
    """
    batch = signature.batch
    most = batch.maximum or batch.typical
    wrong = [size for size in sizes if not batch.minimum <= whole("profiles", size) <= most]
    if wrong:
        raise InputError(f"profiles={list(sizes)}: batches of {wrong[0]} are outside {batch}")
    batched = [spec for spec in signature.inputs if None in spec.shape]
    ranges = [(batch.minimum, batch.typical, most), *((size, size, size) for size in dict.fromkeys(sizes))]

    def shape(lengths: Sequence[int | None], size: int) -> Shape:
        return tuple(size if length is None else length for length in lengths)

    return [
        {spec.name: (shape(spec.shape, a), shape(spec.shape, b), shape(spec.shape, c)) for spec in batched}
        for a, b, c in ranges
        if batched
    ]


def plan_file(model: bytes, signature: Signature, options: Mapping[str, Any]) -> Path | None:
    """Where the engine cache keeps the plan of this file, for this TensorRT and GPU and these options; None without."""
    api = tensorrt()
    named = {
        "tensorrt": api.__version__,
        "device": cuda.get_device_name(),
        "capability": list(cuda.get_device_capability()),
        "shapes": profile_shapes(signature, options.get("profiles", ())),
        "level": options.get("level"),
        "workspace": options.get("workspace", WORKSPACE),
        "refit": bool(options.get("refit")),
    }
    key = hashlib.sha256(json.dumps(named, sort_keys=True).encode() + b"\0" + decomposable(model))
    folder = cache_path(options.get("engine_cache"), user_cache() / "tensorrt-plans", default=False)
    return None if folder is None else folder / f"{key.hexdigest()}.plan"


def read_plan(path: Path) -> bytes | None:
    """What `write_plan` wrote; None where there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, plan = content[:32], content[32:]
    return plan if hashlib.sha256(plan).digest() == digest else None


def write_plan(path: Path, plan: bytes) -> None:
    """Keeps a plan behind its checksum."""
    write(path, hashlib.sha256(plan).digest() + plan)


def write(path: Path, content: bytes) -> None:
    """Replaces the file in one step: another build may be reading it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise EngineError(f"cannot write {path}: {error}; name another place, or False for none") from error


def decomposable(model: bytes) -> bytes:
    """`model` with permission to decompose each Attention: without it, no fused kernel is a build failure.

    The permission is an attribute that only TensorRT's parser knows, so the saved file does without it.
    """
    import onnx

    if b"Attention" not in model:
        return model
    parsed = onnx.load_model_from_string(model)
    for node in parsed.graph.node:
        if node.op_type == "Attention":
            node.attribute.append(onnx.helper.make_attribute("TRT_decomposable", 1))
    return bytes(parsed.SerializeToString(deterministic=True))


def level_of(level: Any) -> int:
    """A builder optimization level; `InputError` where it is none."""
    if whole("level", level, least=0) > LEVELS:
        raise InputError(f"level={level}: the builder optimization level is at most {LEVELS}")
    return int(level)


def _reporter(progress: Report | None, phases: ExitStack) -> Report:
    """What a build's progress is told to: `progress`, or else whoever listens to stages, of outermost phases alone."""
    if progress is not None:
        return progress
    stages, under_way = Stages(), dict[str, ExitStack]()

    def report(phase: str, done: int, of: int) -> None:
        if done == 0 and not under_way:
            under_way[phase] = phases.enter_context(ExitStack())
            under_way[phase].enter_context(stages(f"TensorRT: {phase}"))
        elif done == of and phase in under_way:
            under_way.pop(phase).close()

    return report


def _timing_cache(api: Any) -> Path:
    device = re.sub(r"\W+", "-", cuda.get_device_name())
    return user_cache() / f"tensorrt-{api.__version__}-{device}.cache"


def user_cache() -> Path:
    """Where the user's caches are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "eqsat-deploy"


def cache_path(option: str | os.PathLike[str] | bool | None, usual: Path, *, default: bool) -> Path | None:
    """The path that an option names: `usual` for True, none for False, `default` where it is not given."""
    chosen = default if option is None else option
    if isinstance(chosen, bool):
        return usual if chosen else None
    return Path(chosen)


def _parser_error(error: trt.ParserError) -> str:
    return f"{error.desc()} (node {error.node_name()!r}, {error.node_operator()})"
