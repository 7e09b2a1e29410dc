"""Artifacts that were damaged or forged, each of which must load as it was saved or be refused with an `EqsatError`.

python -m benchmarks.fuzz_artifacts --json benchmarks/results/fuzz_artifacts.json

Damage leaves the hashes as they are; a forgery makes them fit, so that it is the schema, and then the runtime's own
reader, that has to find it. All of them are read (`artifact.read`, and the weights); `--runtime` forgeries that read
well are loaded and called in a process of its own, which has 4 GiB of memory and a minute for each, and may not die.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import eqsat_deploy as eqd
from benchmarks.zoo import versions
from eqsat_deploy import artifact, torchless
from eqsat_deploy.calling import arguments
from eqsat_deploy.errors import EqsatError, InputError
from eqsat_deploy.manifest import WEIGHTS

MEMORY = 4 << 30
SECONDS = 60  # that loading and calling may take
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 7, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**40, 0.5, -0.0, 1e308, "", "x", "save", "load",
    "../x", "\x00", "é" * 400, "a" * 5000, [], {}, [None], [[]], {"": None}, {"tuple": []},
    {"dict": [[{"list": []}, None]]},
    {"dtype": "save"}, {"class": "os:system", "context": None, "fields": ["a"], "empty": [], "parts": [None]},
    {"namedtuple": "ast:Call", "fields": ["func", "args", "keywords"], "parts": [None, None, None]},
    {"device": "cuda:0"}, {"float": "nan"}, {"unwritten": "x", "number": 0}, {"tuple": [{"tuple": [{"tuple": []}]}]},
)  # fmt: skip

Change = Callable[[random.Random, Path], str]


class Convolution(nn.Module):
    """One image in, one tensor out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))


class Nested(nn.Module):
    """Arguments by position and by name, nested; a dict, a tuple and a constant back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, pair: Any, scale: float = 1.0, *, more: Any = None) -> Any:
        y = torch.relu(self.layer(x)) * scale + pair[0] - pair[1]
        return {"y": (y, y + more["z"]), "n": 3}


def originals(folder: Path) -> list[Path]:
    """Artifacts of two calls and two engines."""
    torch.manual_seed(0)
    image, rows = torch.randn(2, 3, 8, 8), torch.randn(2, 4)
    nested = {"x": rows, "pair": (rows, rows), "scale": 0.5, "more": {"z": rows}}
    made = []
    warnings.simplefilter("ignore")  # networks of this size have nothing that pays in INT8
    for name, model, example in (("convolution", Convolution(), image), ("nested", Nested(), nested)):
        optimized = eqd.optimize(model.eval(), example, cost="openvino_int8").quantize([example])
        for engine in ("openvino", "onnxruntime"):
            path = folder / f"{name}-{engine}"
            optimized.build(engine, options={"threads": 1}, baseline=False).save(path, weights=True)
            made.append(path)
    return made


def seal(folder: Path, manifest: bytes) -> None:
    """Write a manifest with its hash."""
    (folder / artifact.MANIFEST).write_bytes(manifest)
    digest = hashlib.sha256(manifest).hexdigest()
    (folder / artifact.SUM).write_text(f"{digest}  {artifact.MANIFEST}\n")


def files(folder: Path) -> list[Path]:
    """Every file, in order."""
    return sorted(file for file in folder.rglob("*") if file.is_file())


def changed(draw: random.Random, content: bytes) -> bytes:
    """`content` cut off, with bits flipped, a piece twice, or zeros or more at its end."""
    match draw.randrange(5):
        case 0:
            return content[: draw.randrange(len(content) or 1)]
        case 1:
            flipped = bytearray(content or b"x")
            for _ in range(draw.choice((1, 1, 1, 2, 8))):
                flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            return bytes(flipped)
        case 2:
            a, b = sorted(draw.randrange(len(content) or 1) for _ in range(2))
            return content[:b] + content[a:b] + content[b + (b - a) :]
        case 3:
            return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)
    return content + draw.randbytes(draw.randrange(1, 9))


def damaged(draw: random.Random, folder: Path) -> str:
    """Bytes of one file, whichever."""
    file = draw.choice(files(folder))
    file.write_bytes(changed(draw, file.read_bytes()))
    return "bytes"


def missing(draw: random.Random, folder: Path) -> str:
    """One file gone."""
    draw.choice(files(folder)).unlink()
    return "missing file"


def extra(draw: random.Random, folder: Path) -> str:
    """A file that nothing lists among the engine's."""
    (folder / "engine" / draw.choice(("model.bin.bak", "a.onnx", ".hidden"))).write_bytes(b"x")
    return "extra file"


def swapped(draw: random.Random, folder: Path) -> str:
    """Two files in each other's place."""
    a, b = draw.sample(files(folder), 2)
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    return "swapped files"


def replaced(draw: random.Random, folder: Path) -> str:
    """A link, a folder or a pipe where a file was."""
    file = draw.choice(files(folder))
    aside = folder.parent / "aside"
    file.rename(aside)
    draw.choice((lambda: file.symlink_to(aside), file.mkdir, lambda: os.mkfifo(file)))()
    return "no plain file"


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in JSON values."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def value(draw: random.Random, folder: Path) -> str:
    """One to three values of the manifest replaced, taken away, or moved to where another was."""
    manifest = json.loads((folder / artifact.MANIFEST).read_bytes())
    for _ in range(draw.choice((1, 1, 2, 3))):
        whole = draw.random() < 0.3
        parts = [manifest] if whole else map(manifest.get, ("signature", "files", "options"))
        found = [place for part in parts for place in places(part)]
        if not found:
            continue
        container, key = draw.choice(found)
        match draw.randrange(4):
            case 0:
                del container[key]
            case 1:
                other, name = draw.choice(found)
                container[key] = copy.deepcopy(
                    other.get(name) if isinstance(other, dict) else draw.choice(other or [0])
                )
            case _:
                container[key] = draw.choice(VALUES)
    seal(folder, json.dumps(manifest).encode("utf-8", "surrogatepass"))
    return "forged value"


def text(draw: random.Random, folder: Path) -> str:
    """The manifest's text: bytes, a key twice, nesting, constants and numbers that JSON has not."""
    content = (folder / artifact.MANIFEST).read_bytes()
    match draw.randrange(6):
        case 0:
            content = content.replace(b'"format"', b'"format": 3, "format"', 1)
        case 1:
            content = content.replace(
                b'"report": {', b'"report": {"deep": ' + b"[" * draw.choice((150, 250, 5000)), 1
            )
        case 2:
            depth = draw.choice((50, 150, 950, 5000, 100_000))
            content = content.replace(
                b'"options": {', b'"options": {"deep": ' + b"[" * depth + b"]" * depth + b", ", 1
            )
        case 3:
            number = draw.choice((b"NaN", b"-Infinity", b"1e999", b"9" * 4000, b"9" * 5000, b"01", b"-0"))
            content = content.replace(b'"typical": 1', b'"typical": ' + number, 1)
        case _:
            content = changed(draw, content)
    seal(folder, content)
    return "forged text"


def contents(draw: random.Random, folder: Path) -> str:
    """Bytes of a file, and the manifest's sizes and hashes made to fit."""
    manifest = json.loads((folder / artifact.MANIFEST).read_bytes())
    name = draw.choice(sorted(manifest["files"]))
    content = changed(draw, (folder / name).read_bytes())
    (folder / name).write_bytes(content)
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    seal(folder, json.dumps(manifest).encode())
    return "forged weights" if name == WEIGHTS else "forged engine file"


DAMAGE: tuple[Change, ...] = (damaged, damaged, damaged, missing, extra, swapped, replaced)
FORGERIES: tuple[Change, ...] = (value, value, value, text, contents)


def fuzzed(bases: list[Path], folder: Path, seed: int) -> tuple[Path, Path, str]:
    """The base, the artifact that became of it, and what was done to it; the same for the same seed."""
    draw = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    base = draw.choice(bases)
    made = folder / "model.eqsat"
    shutil.copytree(base, made)
    what = draw.choice(FORGERIES if seed % 2 else DAMAGE)(draw, made)
    return base, made, what


def same(a: Path, b: Path) -> bool:
    """Whether two folders hold the same bytes."""
    return [(f.relative_to(a), f.read_bytes()) for f in files(a)] == [
        (f.relative_to(b), f.read_bytes()) for f in files(b)
    ]


def read(base: Path, made: Path, seed: int) -> str:
    """What becomes of reading one: `refused`, `read`, or how that failed."""
    try:
        saved = artifact.read(made)
        load_file(made / WEIGHTS)
        repr(saved.signature), saved.manifest.rebuild(made), saved.manifest.realized
    except EqsatError as error:
        return "refused" if "model.eqsat" in str(error) else f"does not say what of: {error}"
    except Exception as error:
        safe = seed % 2 and type(error).__name__ == "SafetensorError"  # `load` says this one with the file
        return "refused" if safe else f"raised {type(error).__name__}: {error}"
    return "read" if seed % 2 or same(base, made) else "damage was not seen"


def runtime(bases: list[Path], folder: Path, seeds: list[int]) -> None:
    """Load and call each; a line of JSON for each before and after."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for seed in seeds:
        print(json.dumps([seed, "died"]), flush=True)
        signal.alarm(SECONDS)  # nobody handles it: the process ends
        _, made, _ = fuzzed(bases, folder, seed)
        said, without_torch = called(with_torch, made), called(alone, made)
        if without_torch.startswith("raised"):
            said = f"{without_torch}, without torch"
        print(json.dumps([seed, said]), flush=True)


def called(call: Callable[[Path], Callable[[], Any]], made: Path) -> str:
    """What becomes of loading an artifact and then calling it."""
    try:
        run = call(made)
        try:
            run()
        except EqsatError:
            return "refused a call"
    except EqsatError:
        return "refused"
    except Exception as error:
        return f"raised {type(error).__name__}: {error}"
    return "ran"


def with_torch(made: Path) -> Callable[[], Any]:
    """A call of zeros at the typical batch."""
    engine = eqd.load(made)
    signature = engine.signature
    args, kwargs = arguments(signature.call.batch(signature.zeros(signature.batch.typical)))
    return lambda: engine(*args, **kwargs)


def alone(made: Path) -> Callable[[], Any]:
    """The same without torch."""
    engine = torchless.load(made)
    size = engine.manifest.signature.batch.typical
    shapes = ([size if n is None else n for n in leaf.shape or ()] for leaf in engine.inputs)
    dtypes = ("float32" if leaf.dtype == "bfloat16" else leaf.dtype for leaf in engine.inputs)
    try:
        arrays = [np.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    except TypeError as error:  # NumPy has no such dtype: nobody can call it
        raise InputError(str(error)) from error
    return lambda: engine.flat(arrays)


def through_runtime(bases: list[Path], folder: Path, seeds: list[int]) -> dict[int, str]:
    """What became of each, whatever processes that takes."""
    found: dict[int, str] = {}
    while rest := [seed for seed in seeds if seed not in found]:
        command = [sys.executable, "-m", "benchmarks.fuzz_artifacts", "--child", str(folder)]
        words = json.dumps([[str(base) for base in bases], rest])
        done = subprocess.run(command, input=words, capture_output=True, text=True, timeout=3600)
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        found |= dict(lines)
        if not lines:
            raise RuntimeError(done.stderr[-2000:])
    return found


def main() -> int:
    """Command line; exits with 1 when anything was neither refused nor read."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--runtime", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0, help="the first of the seeds")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        bases, seeds = json.load(sys.stdin)
        runtime([Path(base) for base in bases], arguments.child, seeds)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        bases = originals(root)
        begin = time.perf_counter()
        outcomes: Counter[tuple[str, str]] = Counter()
        readable, bad = [], []
        for seed in range(arguments.seed, arguments.seed + arguments.count):
            base, made, what = fuzzed(bases, root / "fuzzed", seed)
            said = read(base, made, seed)
            outcomes[what, said if said in ("read", "refused") else "FAILED"] += 1
            if said == "read" and seed % 2:
                readable.append(seed)
            if said not in ("read", "refused"):
                bad.append([seed, what, said[:300]])
                print(*bad[-1], flush=True)
        seconds = time.perf_counter() - begin
        ran = through_runtime(bases, root / "child", readable[: arguments.runtime])
    bad += [
        [seed, "runtime", said[:300]] for seed, said in ran.items() if not said.startswith(("ran", "refused"))
    ]
    result = {
        "versions": versions(),
        "artifacts": arguments.count,
        "seconds": round(seconds, 1),
        "outcomes": {
            what: {s: n for (w, s), n in sorted(outcomes.items()) if w == what}
            for what, _ in sorted(outcomes)
        },
        "runtime": dict(Counter(said.split(":")[0] for said in ran.values()).most_common()),
        "failures": bad,
    }
    print(json.dumps(result, indent=1))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
