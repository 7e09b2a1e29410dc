"""Every TensorRT name, keyword and number of arguments that the engine uses, against NVIDIA's published bindings.

The bindings import without a GPU when the libraries they link to exist, so empty ones are compiled for them. What
the engine uses is read from its source: objects of TensorRT are annotated there with their class.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import eqsat_deploy.engines.tensorrt as home
from eqsat_deploy.engines import tensorrt_callbacks
from tests.deploy.engines import fake_tensorrt

VERSIONS = ("10.13.3.9", "10.16.1.11", "11.4.0.106")
SOURCE = "\n".join(
    Path(module.__file__).read_text().replace("from __future__ import annotations", "")
    for module in (home, tensorrt_callbacks)
)
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
# Prints, for each dotted name, null when there is none and its docstring when there is one.
LOOK_UP = """
import json, sys, tensorrt_bindings as root
found = {}
for name in json.load(sys.stdin):
    value = root
    for part in name.split("."):
        value = getattr(value, part, None)
        if value is None:
            break
    found[name] = None if value is None else (getattr(value, "__doc__", "") or "")
json.dump({"version": root.__version__, "found": found}, sys.stdout)
"""


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


def problems(source: str, bindings: Path) -> list[str]:
    """What of `source` the bindings installed at `bindings` do not have."""
    wanted = sorted(uses(source), key=lambda use: (use.name, use.positional or 0, use.keywords))
    answer = subprocess.run(
        [sys.executable, "-c", LOOK_UP],
        input=json.dumps(sorted({use.name for use in wanted} | {f"{use.name}.__init__" for use in wanted})),
        env={**os.environ, "PYTHONPATH": str(bindings), "LD_LIBRARY_PATH": str(bindings / "libraries")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    documented = json.loads(answer.stdout)["found"]
    wrong = []
    for use in wanted:
        text = documented[use.name]
        if text is None:
            wrong.append(f"{use.name} does not exist")
        elif use.positional is not None and (reason := misuse(use, text, documented[f"{use.name}.__init__"])):
            wrong.append(reason)
    return wrong


def misuse(use: Use, text: str, constructor: str | None) -> str | None:
    """Why the call does not fit any signature that pybind11 writes into docstrings; None where one fits."""
    text = text if f"{use.name.rpartition('.')[2]}(" in text else constructor or ""
    signatures = [line for line in text.splitlines() if "(self" in line and "->" in line]
    for signature in signatures:
        inside = signature[signature.index("(") + 1 : signature.rindex("->")].rstrip(" )")
        parameters = split(inside)[1:]
        names = [parameter.split(":")[0].strip() for parameter in parameters]
        required = sum("=" not in parameter for parameter in parameters)
        itself = use.name.endswith("__init__")  # called on the class
        given = use.positional + len(use.keywords) - itself  # type: ignore[operator]
        if required <= given <= len(parameters) and set(use.keywords) <= set(names):
            return None
    return f"{use.name} is not called like {signatures}" if signatures else None


def split(parameters: str) -> list[str]:
    """A parameter list at its top-level commas."""
    parts, depth = [""], 0
    for letter in parameters:
        depth += (letter in "[(") - (letter in "])")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


@pytest.fixture(scope="session", params=VERSIONS)
def bindings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bindings of one version, unpacked beside libraries that have their entry points and nothing else."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("stand-ins for TensorRT's libraries need Linux and a C compiler")
    folder = tmp_path_factory.mktemp(f"tensorrt-{request.param}")
    fetched = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder),
         f"tensorrt_cu13_bindings=={request.param}"],
        capture_output=True, text=True,
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if fetched.returncode or not wheels:
        pytest.skip(
            f"no wheel of tensorrt_cu13_bindings {request.param} to download: {fetched.stderr.strip()[-200:]}"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)
    (folder / "libraries").mkdir()
    (folder / "empty.c").write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in ENTRY_POINTS))
    major = request.param.split(".")[0]
    for library in LIBRARIES:
        target = folder / "libraries" / f"lib{library}.so.{major}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(target), str(folder / "empty.c")], check=True)
    return folder


def test_the_source_is_read_in_full() -> None:
    names = {use.name for use in uses(SOURCE)}
    assert {
        "Builder", "Builder.create_network", "OnnxParser.parse", "IBuilderConfig.set_timing_cache",
        "NetworkDefinitionCreationFlag.STRONGLY_TYPED", "IOptimizationProfile.set_shape", "IErrorRecorder",
        "Runtime.deserialize_cuda_engine", "ICudaEngine.create_engine_inspector", "IExecutionContext.execute_async_v3",
        "EngineInspector.get_engine_information", "OnnxParserRefitter.refit_from_bytes", "ParserError.desc",
        "Refitter.get_missing_weights", "DataType.INT8", "IExecutionContext.report_to_profiler",
    } <= names  # fmt: skip
    assert Use("IBuilderConfig.set_timing_cache", 1, ("ignore_mismatch",)) in uses(SOURCE)


def test_every_object_of_tensorrt_is_annotated() -> None:
    """All methods of the stand-in are among the names checked, so none escapes for want of a type."""
    checked = {use.name.rpartition(".")[2] for use in uses(SOURCE)}
    kinds = [
        node
        for node in ast.walk(ast.parse(Path(fake_tensorrt.__file__).read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    own = {"read", "memory", "record", "steps", "report_error", "wait_stream", "synchronize", "serialize"}
    faked = {method.name for kind in kinds for method in kind.body if isinstance(method, ast.FunctionDef)}
    assert {name for name in faked if not name.startswith("__")} - own - {"session"} <= checked


@pytest.mark.slow
def test_the_bindings_have_all_that_the_engine_uses(bindings: Path) -> None:
    assert problems(SOURCE, bindings) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong", "reported"),
    [
        (
            "context.set_input_shape(",
            "context.set_input_shapes(",
            "IExecutionContext.set_input_shapes does not exist",
        ),
        ("BuilderFlag.REFIT", "BuilderFlag.INT8_REFIT", "BuilderFlag.INT8_REFIT does not exist"),
        ("api.OnnxParserRefitter", "api.OnnxRefitter", "OnnxRefitter does not exist"),
        (
            "ignore_mismatch=False",
            "ignore_mismatches=False",
            "IBuilderConfig.set_timing_cache is not called like",
        ),
        (
            "create_timing_cache(known)",
            "create_timing_cache()",
            "IBuilderConfig.create_timing_cache is not called like",
        ),
        ("api.Runtime(self.logger)", "api.Runtime(self.logger, 1)", "Runtime is not called like"),
    ],
)
def test_the_check_finds_planted_mistakes(bindings: Path, right: str, wrong: str, reported: str) -> None:
    assert right in SOURCE
    found = problems(SOURCE.replace(right, wrong), bindings)
    assert any(problem.startswith(reported) for problem in found), found


@pytest.mark.slow
def test_the_bindings_want_an_error_recorder_with_these_methods(bindings: Path) -> None:
    """The interfaces that the engine implements: their methods are looked up by name from C++."""
    source = SOURCE[SOURCE.index("class Recorder") : SOURCE.index("return Recorder")]
    defined = [
        node.name for node in ast.walk(ast.parse("if 1:\n    " + source)) if isinstance(node, ast.FunctionDef)
    ]
    recorder = [name for name in defined if name not in ("__init__", "report_layer_time")]
    checks = [*(f"api.IErrorRecorder.{name}" for name in recorder), "api.IProfiler.report_layer_time"]
    assert len(recorder) == 6
    assert problems("\n".join(checks), bindings) == []
