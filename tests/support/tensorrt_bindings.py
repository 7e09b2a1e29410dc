"""What NVIDIA's Python bindings of TensorRT have: every name, and how it is called, version by version.

    python -m tests.support.tensorrt_bindings [VERSION ...]

writes `tensorrt_bindings.json` out of the wheels of these versions (of those that it has, otherwise). The wheels hold
one extension module, which imports without a GPU where the libraries that it links to exist; empty ones are compiled.
What is called how is read from the docstrings that pybind11 writes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

PACKAGE = "tensorrt_cu13_bindings"
FILE = Path(__file__).with_suffix(".json")
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
ENTRY_POINTS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "initLibNvInferPlugins",
)  # fmt: skip
# Prints the docstring of every public name, "" where it has none; the constructor's as that of the class.
WALK = """
import json, sys, tensorrt_bindings as root
found = {}
def walk(owner, prefix):
    for name in dir(owner):
        value = getattr(owner, name, None)
        if name.startswith("_") or type(value) is type(root):
            continue
        known = prefix + name
        constructed = isinstance(value, type)
        found[known] = getattr(value.__init__ if constructed else value, "__doc__", "") or ""
        if constructed and value.__module__.startswith("tensorrt"):
            walk(value, known + ".")
walk(root, "")
json.dump(found, sys.stdout)
"""
# No network is built by hand, and no plugin written: the bulk of the names, which nothing here can use by mistake.
LEFT_OUT = ("Plugin", "INetworkDefinition.add_", "Layer.", "LayerType.", "Dims", "Algorithm")

Signatures = Mapping[str, Iterable[str]]


class Unavailable(Exception):
    """The bindings cannot be had here: no compiler, no network, or no such version."""


def unpacked(version: str | None, folder: Path) -> Path:
    """The bindings of a version, the newest for None, in a new folder below `folder`, with libraries that have their
    entry points and nothing else. Raises `Unavailable`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        raise Unavailable("stand-ins for TensorRT's libraries need Linux and a C compiler")
    home = Path(tempfile.mkdtemp(dir=folder))
    wanted = PACKAGE if version is None else f"{PACKAGE}=={version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(home), wanted]
    fetched = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(home.glob("*.whl"))
    if fetched.returncode or not wheels:
        raise Unavailable(f"no wheel of {wanted} to download: {fetched.stderr.strip()[-200:]}")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(home)
    (home / "libraries").mkdir()
    (home / "empty.c").write_text("\n".join(f"void *{name}(void) {{ return 0; }}" for name in ENTRY_POINTS))
    for library in LIBRARIES:
        target = home / "libraries" / f"lib{library}.so.{version_of(home).split('.')[0]}"
        subprocess.run([compiler, "-shared", "-fPIC", "-o", target, home / "empty.c"], check=True)
    return home


def version_of(home: Path) -> str:
    """The version of unpacked bindings."""
    return next(home.glob(f"{PACKAGE}-*.dist-info")).name.split("-")[1].removesuffix(".dist")


def run(home: Path, script: str, *arguments: str) -> str:
    """What a script prints that imports `tensorrt_bindings` from `home`."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": str(home), "LD_LIBRARY_PATH": str(home / "libraries")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def signatures(home: Path) -> dict[str, list[str]]:
    """How each name is called, in short: `(name, ignore_mismatch=)`; none for what is not called."""
    documented = json.loads(run(home, WALK))
    return {
        name: list(dict.fromkeys(_short(line) for line in text.splitlines() if "->" in line and "(self" in line))
        for name, text in sorted(documented.items())
        if not any(part in name for part in LEFT_OUT)
    }  # fmt: skip


def _short(line: str) -> str:
    """A signature without types: parameters, `=` after those that may be left out."""
    inside = line[line.index("(") + 1 : line.rindex("->")].strip().removesuffix(")")
    parameters = [part.strip() for part in _split(inside)[1:]]
    return f"({', '.join(part.split(':')[0] + '=' * ('=' in part) for part in parameters)})"


def _split(parameters: str) -> list[str]:
    """A parameter list at its top-level commas."""
    parts, depth = [""], 0
    for letter in parameters:
        depth += (letter in "[(<") - (letter in "])>")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def stored() -> dict[str, dict[str, list[str]]]:
    """By version: the signatures that the file has."""
    text = json.loads(FILE.read_text())
    return {
        version: {
            name: [signature for signature, where in kinds.items() if signature and number in where]
            for name, kinds in text["names"].items()
            if any(number in where for where in kinds.values())
        }
        for number, version in enumerate(text["versions"])
    }


def write(found: Mapping[str, Signatures]) -> None:
    """A line a name: which signatures it has in which versions, by their numbers."""
    names: dict[str, dict[str, list[int]]] = {}
    for number, version in enumerate(found):
        for name, kinds in found[version].items():
            for signature in kinds or [""]:
                names.setdefault(name, {}).setdefault(signature, []).append(number)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(names[name])}" for name in sorted(names))
    FILE.write_text(f'{{"versions": {json.dumps(list(found))}, "names": {{\n{lines}\n}}}}\n')


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        versions = sys.argv[1:] or list(stored())
        homes = {version: unpacked(version, Path(folder)) for version in versions}
        write({version: signatures(home) for version, home in homes.items()})


if __name__ == "__main__":
    main()
