"""Every e-node of every e-class of saturated models, evaluated on real inputs.

python -m benchmarks.soundness --models torchvision:resnet18,timm:deit_tiny_patch16_224 --json OUT
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks._models import inputs, load, rerandomize
from benchmarks.zoo import FOUNDING, versions
from eqsat_deploy.soundness import check_egraph


def row(spec: str, seed: int) -> dict[str, Any]:
    """The report of one model as JSON values, `status` first."""
    try:
        report = check_egraph(rerandomize(load(spec, seed), seed), inputs(spec, seed), seed=seed)
    except Exception as error:  # whatever goes wrong with somebody's model is the row's status
        return {"model": spec, "status": f"{type(error).__name__}: {error}"[:500]}
    print(report, flush=True)
    status = "ok" if report.ok else f"{len(report.disagreements)} e-nodes disagree"
    return asdict(report) | {"model": spec, "status": status, "suspects": report.suspects()}


def main() -> int:
    """Command line; exits with 1 when an e-class disagrees."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(FOUNDING), help="comma-separated SPECs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for spec in arguments.models.split(","):
        rows.append(row(spec, arguments.seed) | {"versions": versions()})
        if rows[-1]["status"] != "ok":
            print(f"{spec}: {rows[-1]['status']}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(any(r["status"] != "ok" for r in rows))


if __name__ == "__main__":
    sys.exit(main())
