"""What the subcommands of saved engines do."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqsat_deploy.cli.codes import CODES, OK
from eqsat_deploy.cli.output import failed, show
from eqsat_deploy.errors import VerificationError

if TYPE_CHECKING:
    from eqsat_deploy.artifact import Artifact
    from eqsat_deploy.trial import Trial


def inspect(args: argparse.Namespace) -> int:
    """What an artifact is, what it expects and what was measured; every file is checked, nothing is compiled."""
    from eqsat_deploy.artifact import BUCKETS, read
    from eqsat_deploy.bucketed import read_padding

    if not (args.artifact / BUCKETS).exists():
        found = described(read(args.artifact))
        show(args, found, _table(found))
        return OK
    padding = read_padding(args.artifact)
    each = {size: described(read(args.artifact / str(size))) for size in padding.sizes}
    padded = ", ".join(f"{name} with {value:g}" for name, value in padding.values.items())
    show(
        args,
        {"artifact": str(args.artifact), "padding": padding.values, "buckets": each},
        f"{args.artifact}: for inputs of up to {padding.sizes[-1]}, padded: {padded}",
        *map(_table, each.values()),
    )
    return OK


def verify(args: argparse.Namespace) -> int:
    """Load an artifact and run it on data, beside the outputs that are in the data."""
    from eqsat_deploy.loading import load_engine
    from eqsat_deploy.trial import trial

    engine = load_engine(args.artifact)
    found = [trial(engine, source) for source in args.data]
    below = [o for each in found for o in each.outputs if not o.holds(args.decibels)]
    result = {
        "artifact": str(args.artifact),
        "data": [each.to_dict() for each in found],
        "decibels": args.decibels,
        "ok": not below,
    }
    show(
        args,
        result,
        *map(_tried, found),
        f"{args.artifact}: every file is as it was saved, and it runs here",
    )
    if not below:
        return OK
    words = ", ".join(f"{output.name} {output.said}" for output in below)
    message = f"{args.artifact} does not compute what the data says: {words}"
    error = VerificationError(message)
    return failed(error, message, dict(CODES)[VerificationError], as_json=False, debug=args.debug)


def serve(args: argparse.Namespace) -> int:
    """Serve artifacts over HTTP until a signal stops it."""
    from eqsat_deploy.serving.server import serve

    serve(
        args.artifacts,
        host=args.host,
        port=args.port,
        limit=args.max_batch,
        delay=args.max_delay / 1e3,
        queue=args.queue,
        workers=args.workers,
        megabytes=args.max_request,
        seconds=args.timeout,
        quiet=args.quiet,
    )
    return OK


def described(saved: Artifact) -> dict[str, Any]:
    """An artifact as JSON values."""
    manifest, report = saved.manifest, saved.manifest.report or {}
    realized, batch = manifest.realized, saved.signature.batch
    return {
        "artifact": str(saved.path),
        "engine": manifest.engine,
        "device": manifest.device,
        "versions": {
            "engine": manifest.versions.engine,
            "eqsat_deploy": manifest.versions.eqsat_deploy,
            "torch": manifest.versions.torch,
            "python": manifest.versions.python,
        },
        "model": report.get("model"),
        "cost_model": report.get("cost_model"),
        "inputs": [
            {"name": spec.name, "shape": list(spec.shape), "dtype": str(spec.dtype).removeprefix("torch.")}
            for spec in saved.signature.inputs
        ],
        "call": f"forward{saved.signature.call.signature}, with {saved.signature.call}",
        "outputs": saved.signature.results,
        "batch": {"minimum": batch.minimum, "typical": batch.typical, "maximum": batch.maximum},
        "options": manifest.options,
        "shipped": realized.shipped,
        "latency_us": realized.latency,
        "realized_int8": realized.realized_int8,
        "expected_int8": realized.expected_int8,
        "layers": len(realized.layers),
        "notes": realized.notes,
        "command": manifest.rebuild(saved.path),
        "bytes": {name: file.bytes for name, file in manifest.files.items()},
    }


def _table(found: dict[str, Any]) -> Any:
    from rich.table import Table

    batch = found["batch"]
    most = "any" if batch["maximum"] is None else batch["maximum"]
    latency = ", ".join(f"{name} {us / 1e3:.3f} ms" for name, us in found["latency_us"].items())
    integer = f"{found['realized_int8']} of {found['expected_int8']} kernels that were to be"
    rows = {
        "engine": f"{found['engine']} ({found['versions']['engine']}), built on {found['device']}",
        "model": f"{found['model']}, for {found['cost_model']}" if found["model"] else None,
        "called as": found["call"],
        "batch": f"{batch['typical']}; from {batch['minimum']} to {most}",
        "options": ", ".join(f"{name}={value}" for name, value in found["options"].items()),
        "shipped": found["shipped"] and f"the {found['shipped']} form",
        "raced": latency,
        "INT8": None if found["realized_int8"] is None else integer,
        "saved by": ", ".join(f"{k} {v}" for k, v in found["versions"].items() if k != "engine"),
        "size": f"{sum(found['bytes'].values()) / 2**20:.1f} MiB in {len(found['bytes'])} files, all as saved",
        "made by": found["command"],
    }
    table = Table(title=found["artifact"], title_justify="left", show_header=False)
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    for note in found["notes"]:
        table.add_row("note", note)
    return table


def _tried(found: Trial) -> str:
    outputs = "; ".join(f"{output.name} {output.said}" for output in found.outputs)
    return f"{Path(found.source)}: {found.samples} samples; {outputs}"
