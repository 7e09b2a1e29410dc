"""Every TensorRT name, keyword and number of arguments that the engine uses, against NVIDIA's published bindings.

What the bindings of each version have is in `tests/support/tensorrt_bindings.json`, which is compared with the wheels
themselves where they can be downloaded. What the engine uses is read from its source: objects of TensorRT are annotated
there with their class.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import eqsat_deploy.engines.tensorrt as home
from eqsat_deploy.engines import tensorrt_callbacks
from tests.deploy.engines import fake_tensorrt
from tests.support import tensorrt_bindings
from tests.support.tensorrt_bindings import Unavailable, run, signatures, stored, unpacked, version_of

VERSIONS = stored()
SOURCE = "\n".join(
    module.read_text().replace("from __future__ import annotations", "")
    for module in sorted(Path(home.__file__).parent.glob("tensorrt*.py"))
)
Names = Mapping[str, list[str]]


@dataclass(frozen=True)
class Use:
    """A dotted name below `tensorrt`, and how it is called: positional arguments (None for no call), keywords."""

    name: str
    positional: int | None = None
    keywords: tuple[str, ...] = ()


def uses(source: str) -> set[Use]:
    """What `source` takes from TensorRT: chains on `api`, and attributes of what is annotated `trt.<Class>`."""
    tree = ast.parse(source)
    found: set[Use] = set()
    for function in ast.walk(tree):
        if isinstance(function, (ast.Module, ast.ClassDef)):
            scope = {}
        elif isinstance(function, ast.FunctionDef):
            scope = annotated(tree, "self.") | annotated(function, "")
        else:
            continue
        called = {node.func: node for node in ast.walk(function) if isinstance(node, ast.Call)}
        for node in ast.walk(function):
            if not isinstance(node, ast.Attribute):
                continue
            chain = ast.unparse(node)
            owner, _, attribute = chain.rpartition(".")
            name = f"{scope[owner]}.{attribute}" if owner in scope else chain.removeprefix("api.")
            if owner not in scope and not chain.startswith("api."):
                continue
            call = called.get(node)
            keywords = tuple(str(word.arg) for word in call.keywords) if call else ()
            found.add(Use(name, len(call.args) if call else None, keywords))
    return found


def annotated(tree: ast.AST, prefix: str) -> dict[str, str]:
    """Names annotated with a class of TensorRT anywhere below `tree`: `builder` is `Builder`."""
    pairs: list[tuple[str, ast.expr | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign):
            pairs.append((ast.unparse(node.target), node.annotation))
        elif isinstance(node, ast.arg):
            pairs.append((node.arg, node.annotation))
    classes = {}
    for name, annotation in pairs:
        text = ast.unparse(annotation).split(" | ")[0] if annotation is not None else ""
        if text.startswith("trt.") and name.startswith(prefix):
            classes[name] = text.removeprefix("trt.")
    return classes


def problems(source: str, known: Names) -> list[str]:
    """What of `source` bindings with these names do not have."""
    wanted = sorted(uses(source), key=lambda use: (use.name, use.positional or 0, use.keywords))
    return [reason for use in wanted if (reason := misuse(use, known)) is not None]


def misuse(use: Use, known: Names) -> str | None:
    """Why the name does not exist, or the call fits none of its signatures; None where one fits."""
    name = use.name.removesuffix(".__init__")  # called on the class
    if name.startswith("__version__"):  # a string
        return None
    if name not in known:
        return f"{name} does not exist"
    if use.positional is None or not known[name]:
        return None
    for signature in known[name]:
        parameters = [part for part in signature.strip("()").split(", ") if part]
        required = sum(not parameter.endswith("=") for parameter in parameters)
        given = use.positional + len(use.keywords) - (name != use.name)
        names = {parameter.removesuffix("=") for parameter in parameters}
        if required <= given <= len(parameters) and set(use.keywords) <= names:
            return None
    return f"{name} is not called like {known[name]}"


@pytest.fixture(scope="session", params=[*VERSIONS, None], ids=str)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bindings of one version, the newest for None."""
    try:
        return unpacked(request.param, tmp_path_factory.mktemp("tensorrt"))
    except Unavailable as error:
        pytest.skip(str(error))


def test_the_versions_are_those_that_are_promised() -> None:
    minors = {tuple(map(int, version.split(".")[:2])) for version in VERSIONS}
    assert {(10, 13), (10, 16), (11, 0)} < minors
    assert max(minors) > (11, 0)


def test_the_source_is_read_in_full() -> None:
    names = {use.name for use in uses(SOURCE)}
    assert {
        "Builder", "Builder.create_network", "OnnxParser.parse", "IBuilderConfig.set_timing_cache",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "IOptimizationProfile.set_shape", "IErrorRecorder",
        "Runtime.deserialize_cuda_engine", "ICudaEngine.create_engine_inspector", "IExecutionContext.execute_async_v3",
        "EngineInspector.get_engine_information", "OnnxParserRefitter.refit_from_bytes", "ParserError.desc",
        "Refitter.get_missing_weights", "DataType.INT8", "IExecutionContext.report_to_profiler",
        "IBuilderConfig.progress_monitor", "IProgressMonitor.__init__", "ICudaEngine.get_tensor_profile_shape",
        "IExecutionContext.set_optimization_profile_async", "Runtime.error_recorder", "Refitter.error_recorder",
        "ICudaEngine.num_optimization_profiles",
    } <= names  # fmt: skip
    assert Use("IBuilderConfig.set_timing_cache", 1, ("ignore_mismatch",)) in uses(SOURCE)


def test_every_object_of_tensorrt_is_annotated() -> None:
    """All methods of the stand-in are among the names checked, so none escapes for want of a type."""
    checked = {use.name for use in uses(SOURCE)}
    faked = {f"{kind}.{method.name}" for kind, method in methods() if not method.name.startswith("__")}
    assert len(faked) > 30
    assert {name for name in faked if name not in checked} == set()


def methods() -> list[tuple[str, ast.FunctionDef]]:
    """Public methods and constructors of the stand-in's classes that have a name of TensorRT's."""
    tree = ast.parse(Path(fake_tensorrt.__file__).read_text())
    kinds = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any(node.name in names for names in VERSIONS.values())
    ]
    own = {"IExecutionContext": {"compute"}, "ICudaEngine": {"graph", "session"}}
    return [
        (kind.name, method)
        for kind in kinds
        for method in kind.body
        if isinstance(method, ast.FunctionDef)
        and method.name not in own.get(kind.name, ())
        and (method.name == "__init__" or not method.name.startswith("_"))
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_stand_in_has_the_methods_and_parameters_of_the_bindings(version: str) -> None:
    made = {"ITimingCache", "IBuilderConfig", "IOptimizationProfile", "ICudaEngine", "IExecutionContext",
            "EngineInspector"}  # fmt: skip
    known = VERSIONS[version]
    wrong = []
    for kind, method in methods():
        constructor = method.name == "__init__"
        if constructor and kind in made:  # by another object, so that nobody calls them
            continue
        name = kind if constructor else f"{kind}.{method.name}"
        parameters = [argument.arg for argument in method.args.args[1:]]
        real = [
            [part.removesuffix("=") for part in re.findall(r"[\w=]+", text)] for text in known.get(name, [])
        ]
        if not any(parameters == every[: len(parameters)] for every in real):
            wrong.append((name, parameters, real))
    assert wrong == []


@pytest.mark.parametrize("version", VERSIONS)
def test_the_bindings_have_all_that_the_engine_uses(version: str) -> None:
    assert problems(SOURCE, VERSIONS[version]) == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("right", "wrong", "reported"),
    [
        ("context.set_input_shape(", "context.set_input_shapes(", "IExecutionContext.set_input_shapes does not exist"),
        ("BuilderFlag.REFIT", "BuilderFlag.INT8_REFIT", "BuilderFlag.INT8_REFIT does not exist"),
        ("api.OnnxParserRefitter", "api.OnnxRefitter", "OnnxRefitter does not exist"),
        ("ignore_mismatch=False", "ignore_mismatches=False", "IBuilderConfig.set_timing_cache is not called like"),
        ("create_timing_cache(known)", "create_timing_cache()", "IBuilderConfig.create_timing_cache is not called"),
        ("api.Runtime(logger(api))", "api.Runtime(logger(api), 1)", "Runtime is not called like"),
        ("config.progress_monitor =", "config.progress_monitors =", "IBuilderConfig.progress_monitors does not exist"),
        ("get_tensor_profile_shape(name, index)", "get_tensor_profile_shape(name)",
         "ICudaEngine.get_tensor_profile_shape is not called like"),
    ],
)  # fmt: skip
def test_the_check_finds_planted_mistakes(version: str, right: str, wrong: str, reported: str) -> None:
    assert right in SOURCE
    found = problems(SOURCE.replace(right, wrong), VERSIONS[version])
    assert any(problem.startswith(reported) for problem in found), found


def test_what_eleven_took_away_is_not_there() -> None:
    """The file tells versions apart."""
    gone = "api.BuilderFlag.INT8", "api.NetworkDefinitionCreationFlag.EXPLICIT_BATCH"
    for version, known in VERSIONS.items():
        assert bool(problems("\n".join(gone), known)) is (not version.startswith("10.")), version


@pytest.mark.parametrize("version", VERSIONS)
def test_the_bindings_want_callbacks_with_these_methods(version: str) -> None:
    """They are looked up by name from C++."""
    wanted = {
        "Recorder": ("IErrorRecorder", {"num_errors", "get_error_code", "get_error_desc", "has_overflowed", "clear",
                                        "report_error"}),
        "Profiler": ("IProfiler", {"report_layer_time"}),
        "Monitor": ("IProgressMonitor", {"phase_start", "step_complete", "phase_finish"}),
    }  # fmt: skip
    classes = {node.name: node for node in ast.walk(ast.parse(SOURCE)) if isinstance(node, ast.ClassDef)}
    for name, (interface, overridden) in wanted.items():
        defined = {method.name for method in classes[name].body if isinstance(method, ast.FunctionDef)}
        assert overridden <= defined
        of_interface = {
            known.partition(".")[2] for known in VERSIONS[version] if known.startswith(f"{interface}.")
        }
        assert overridden == of_interface - {"MAX_DESC_LENGTH"}


@pytest.mark.slow
def test_the_file_says_what_the_wheels_have(bindings: Path) -> None:
    found = signatures(bindings)
    version = version_of(bindings)
    assert problems(SOURCE, found) == []
    if version in VERSIONS:
        assert found == VERSIONS[version], "run python -m tests.support.tensorrt_bindings"


CALLED_BACK = """
import runpy, sys, types
import tensorrt_bindings as api
callbacks = types.SimpleNamespace(**runpy.run_path(sys.argv[1]))

recorder = callbacks.error_recorder(api)
# Through the interface, that is through C++, as TensorRT itself calls.
assert api.IErrorRecorder.report_error(recorder, api.ErrorCodeTRT.INTERNAL_ERROR, "out of memory") is False
assert api.IErrorRecorder.num_errors(recorder) == 1
assert api.IErrorRecorder.get_error_desc(recorder, 0) == "out of memory"
assert api.IErrorRecorder.get_error_code(recorder, 0) == api.ErrorCodeTRT.INTERNAL_ERROR
assert api.IErrorRecorder.has_overflowed(recorder) is False
assert recorder.said() == "It says: out of memory"
assert api.IErrorRecorder.num_errors(recorder) == 0
api.IErrorRecorder.report_error(recorder, api.ErrorCodeTRT.INTERNAL_ERROR, "again")
api.IErrorRecorder.clear(recorder)
assert recorder.found == []

profiler = callbacks.profiler(api)
api.IProfiler.report_layer_time(profiler, "conv", 0.5)
assert profiler.milliseconds == {"conv": [0.5]}

told = []
def report(*step):
    told.append(step)
    if step == ("Timing", 2, 3):
        raise KeyboardInterrupt
monitor = callbacks.monitor(api, report)
api.IProgressMonitor.phase_start(monitor, "Timing", None, 3)
assert api.IProgressMonitor.step_complete(monitor, "Timing", 0) is True
assert api.IProgressMonitor.step_complete(monitor, "Timing", 1) is False
api.IProgressMonitor.phase_finish(monitor, "Timing")
assert told == [("Timing", 0, 3), ("Timing", 1, 3), ("Timing", 2, 3)]
assert isinstance(monitor.raised, KeyboardInterrupt)
assert callbacks.logger(api) is callbacks.logger(api)
int(api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
"""


@pytest.mark.slow
def test_callbacks_are_called_through_the_real_interfaces(bindings: Path) -> None:
    run(bindings, CALLED_BACK, tensorrt_callbacks.__file__)


def test_bindings_that_cannot_be_had_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_bindings.shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match="C compiler"):
        unpacked(None, tmp_path)
