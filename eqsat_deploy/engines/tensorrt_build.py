"""From the lane's file to a plan: its types as they are written, its batch profiles, and what is known from before."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import cuda

from eqsat_deploy import compiled_cache
from eqsat_deploy.cache import cache_folder, write
from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.tensorrt_api import tensorrt
from eqsat_deploy.engines.tensorrt_callbacks import Report, error_recorder, logger, monitor
from eqsat_deploy.errors import EngineError, InputError
from eqsat_deploy.stages import Stages
from eqsat_extraction.arguments import whole

if TYPE_CHECKING:
    import tensorrt as trt

OPTIONS = ("level", "workspace", "refit", "profiles", "timing_cache", "engine_cache", "progress")
WORKSPACE = 4 << 30
LEVELS = 5
TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55"  # of folders that backups leave out (bford.info/cachedir)
)
Shape = tuple[int, ...]


def build_plan(model: bytes, signature: Signature, options: Mapping[str, Any]) -> bytes:
    """The serialized engine for an ONNX file; `EngineError` carries what parser and builder reported.

    Raises:
        InputError: an option is of the wrong kind or size.
    """
    api = tensorrt()
    errors = error_recorder(api)
    builder: trt.Builder = api.Builder(logger(api))
    # Needed by 10.x, accepted and without effect in 11.x.
    strong = 1 << int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network: trt.INetworkDefinition = builder.create_network(strong)
    parser: trt.OnnxParser = api.OnnxParser(network, logger(api))
    if not parser.parse(decomposable(model)):
        found = "; ".join(_parser_error(parser.get_error(index)) for index in range(parser.num_errors))
        raise EngineError(f"TensorRT {api.__version__} does not read the model: {found}")
    # Not before there is a parser: it gives the recorder that it found back to the network when it goes, and in Python
    # the network goes first (`ErrorRecorderWrapper` in onnx-tensorrt's ImporterContext.hpp): a segmentation fault.
    builder.error_recorder = errors
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
    cache_file = timing_cache(options.get("timing_cache"))
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
        with suppress(OSError):  # what fails now costs the next build time, not this one
            write(cache_file, bytes(measured.serialize()))
    return bytes(plan)


def profile_shapes(signature: Signature, sizes: Sequence[int]) -> list[dict[str, tuple[Shape, Shape, Shape]]]:
    """For each profile the least, typical and greatest shape of every input with a batch axis: of the whole range of
    batch sizes first, then of each of `sizes` alone. None where no input has a batch axis.

    Raises:
        InputError: one of `sizes` is outside the range.
    """
    if not isinstance(sizes, list | tuple):
        raise InputError(f"profiles={sizes!r}: a list of batch sizes is expected")
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


def plan_key(model: bytes, signature: Signature, options: Mapping[str, Any]) -> str:
    """What the plan of this file is kept under: it depends on TensorRT, the GPU and these options, too."""
    return compiled_cache.key(
        model=hashlib.sha256(decomposable(model)).hexdigest(),
        tensorrt=tensorrt().__version__,
        gpu=[cuda.get_device_name(), *cuda.get_device_capability()],
        shapes=profile_shapes(signature, options.get("profiles", ())),
        level=options.get("level"),
        workspace=options.get("workspace", WORKSPACE),
        refit=bool(options.get("refit")),
    )


def timing_cache(option: Any) -> Path | None:
    """The file that measured tactics are in: one for each TensorRT and GPU unless `option` names it.

    Raises:
        EngineError: the file that is named cannot be written, which is said before the minutes that a build takes.
        InputError: `option` is no path.
    """
    if option is False:
        return None
    if option is None or option is True:
        device = re.sub(r"\W+", "-", cuda.get_device_name())
        with suppress(OSError):  # a home that cannot be written costs time, not the build
            return cache_folder("tensorrt") / f"{tensorrt().__version__}-{device}.timing"
        return None
    file = path_of("timing_cache", option)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        raise EngineError(f"cannot write {file}: {error}; name another place, or False for none") from error
    return file


def path_of(option: str, value: Any) -> Path:
    """A path; `InputError` where it is none."""
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{option}={value!r}: a path is expected, True or False")
    return Path(value)


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
        if not callable(progress):
            raise InputError(
                f"progress={progress!r}: a function of phase, steps done and their number is expected"
            )
        return progress
    stages, under_way = Stages(), dict[str, ExitStack]()

    def report(phase: str, done: int, of: int) -> None:
        if done == 0 and not under_way:
            under_way[phase] = phases.enter_context(ExitStack())
            under_way[phase].enter_context(stages(f"TensorRT: {phase}"))
        elif done == of and phase in under_way:
            under_way.pop(phase).close()

    return report


def _parser_error(error: trt.ParserError) -> str:
    return f"{error.desc()} (node {error.node_name()!r}, {error.node_operator()})"
