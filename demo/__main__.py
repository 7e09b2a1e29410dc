"""Train, optimize, quantize, build, measure, save, load; then one table."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import eqsat_deploy as eqd
from demo.data import Digits, digits
from demo.models import ConvNet, VisionTransformer
from demo.training import accuracy, train
from eqsat_deploy.deployment import comparable
from eqsat_deploy.engines import Batch
from eqsat_deploy.engines.race import race
from eqsat_deploy.progress import Progress
from eqsat_deploy.report import Report
from eqsat_deploy.selection import TARGET
from eqsat_deploy.stages import Stages
from eqsat_deploy.targets import find_engine

BATCH = 64  # of images as small as these, one at a time is all overhead, in any precision
SAME = 1e-5


@dataclass(frozen=True)
class Row:
    """What the table says of one model: shares, milliseconds a batch, kernels."""

    name: str
    accuracy: tuple[float, float]
    torch_ms: float
    float_ms: float
    int8_ms: float
    forms_ms: dict[str, float]
    shipped: str
    report: Report
    artifact: Path


def run(name: str, model: nn.Module, data: Digits, folder: Path, *, epochs: int, seconds: float) -> Row:
    """The whole way of one model, from training to an artifact that was loaded back."""
    stages = Stages()
    with stages(f"{name}: train"):
        train(model, data, epochs=epochs)
    with stages(f"{name}: optimize"):
        optimized = eqd.optimize(model, data.test_images[:2], batch=BATCH)
    with stages(f"{name}: quantize"):
        quantized = optimized.quantize(data.train_images.split(64))
    with stages(f"{name}: build"):
        engine = quantized.build(batch=BATCH)
    with stages(f"{name}: measure"):
        plain = find_engine().build(comparable(optimized), batch=Batch(typical=BATCH))
        with torch.no_grad():
            contestants = {"torch": model, "float": plain, "int8": engine}
            timings = race(contestants, (data.test_images[:BATCH],), seconds=seconds, runs=10_000)
    artifact = folder / f"{name}.eqsat"
    with stages(f"{name}: save and load"):
        engine.save(artifact)
        loaded = eqd.load(artifact)
    images = data.test_images[:BATCH]
    if not torch.allclose(loaded(images), engine(images), atol=SAME):
        raise SystemExit(f"{artifact} computes something else after loading")
    built = engine.report["engine"]
    return Row(
        name=name,
        accuracy=(accuracy(model, data), accuracy(loaded, data)),
        torch_ms=timings["torch"].median / 1e3,
        float_ms=timings["float"].median / 1e3,
        int8_ms=timings["int8"].median / 1e3,
        forms_ms={form: microseconds / 1e3 for form, microseconds in built["latency"].items()},
        shipped=built["shipped"],
        report=optimized.report,
        artifact=artifact,
    )


def table(rows: list[Row], engine: str) -> Table:
    """One line per number, one column per model."""
    shown = Table(
        "",
        *(row.name for row in rows),
        title=f"digits, on this machine, batches of {BATCH}",
        title_justify="left",
    )
    lines = {
        "test accuracy, FP32 in torch": [f"{row.accuracy[0]:.2%}" for row in rows],
        f"test accuracy, INT8 in {engine}": [f"{row.accuracy[1]:.2%}" for row in rows],
        "latency, original in torch eager": [f"{row.torch_ms:.3f} ms" for row in rows],
        f"latency, plain form in {engine} FP32": [f"{row.float_ms:.3f} ms" for row in rows],
        f"latency, shipped form in {engine} INT8": [f"{row.int8_ms:.3f} ms" for row in rows],
        "shipped, after racing plain and chosen": [
            f"{row.shipped} ({', '.join(f'{form} {ms:.3f}' for form, ms in row.forms_ms.items())})"
            for row in rows
        ],
        "operators in the model": [str(row.report.nodes) for row in rows],
        "kernels, plain form": [str(row.report.plain_kernels) for row in rows],
        "kernels, chosen form (INT8)": [
            f"{row.report.kernels} ({row.report.integer_kernels})" for row in rows
        ],
        "certificate": [
            "proved optimal" if row.report.proved else f"within {row.report.gap:.1%} of optimal"
            for row in rows
        ],
        "rewrites in the chosen form": ["\n".join(rewrites(row.report)) for row in rows],
    }
    for name, cells in lines.items():
        shown.add_row(name, *cells)
    return shown


def rewrites(report: Report) -> list[str]:
    """Rules that the chosen form uses, without those that only say what the target's kernels cover."""
    return [rule.name for rule in report.rules if rule.used and rule.family not in TARGET]


def main() -> None:
    """Run the demo."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-artifacts"), help="folder for the artifacts")
    parser.add_argument(
        "--epochs", type=int, default=40, help="of the vision transformer; the conv net takes a third"
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of measuring per model")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    torch.manual_seed(0)
    data = digits()
    models = (
        ("convnet", ConvNet(), -(-args.epochs // 3)),
        ("vision-transformer", VisionTransformer(), args.epochs),
    )
    with Progress(Console(stderr=True)), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about itself
        rows = [run(name, model, data, args.out, epochs=e, seconds=args.seconds) for name, model, e in models]
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(rows, find_engine().name))
    for row in rows:
        console.print(f"saved, loaded back, same outputs: {row.artifact}", soft_wrap=True)
    console.print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
