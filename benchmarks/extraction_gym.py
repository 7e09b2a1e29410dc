"""extraction-gym's own extractors beside ours, file by file on the same machine: cost and seconds of extraction.

    python -m benchmarks.extraction_gym PATHS... --binary extraction-gym/target/release/extraction-gym --json OUT

The binary is extraction-gym's (github.com/egraphs-good/extraction-gym), built with `--features ilp-cbc`; its timed
extractors stop CBC after ten seconds. Seconds are what each program says of its extraction alone, reading excluded.
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.extraction import GymFile, files, isolated

THEIRS = ("bottom-up", "faster-greedy-dag", "ilp-cbc-timeout", "faster-ilp-cbc-timeout")
SAME = 1e-9
"""Costs are sums of floats in different orders."""


def theirs(binary: Path, path: Path, extractor: str, patience: float) -> dict[str, Any]:
    """One run of extraction-gym: its own DAG cost and its own clock."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [binary, path, "--extractor", extractor, "--out", out]
        try:
            done = subprocess.run(command, capture_output=True, timeout=patience)
        except subprocess.TimeoutExpired:
            return {"extractor": extractor, "error": f"no result in {patience:g} s"}
        if done.returncode:
            return {"extractor": extractor, "error": done.stderr.decode().strip().splitlines()[0]}
        result = json.loads(out.read_text())
        return {"extractor": extractor, "cost": result["dag"], "seconds": result["micros"] / 1e6}


def ours(path: Path, time_limit: float) -> dict[str, Any]:
    """One run of `auto`, in a process of its own, compiled code loaded."""
    row = isolated(GymFile(path), "auto", time_limit)
    return {k: row[k] for k in ("extractor", "cost", "bound", "proved", "seconds", "cpu_seconds")}


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table: per extractor, on how many files it got the best known cost, how far off it was, seconds."""
    best: dict[str, float] = {}
    for row in rows:
        if "cost" in row:
            best[row["file"]] = min(row["cost"], best.get(row["file"], row["cost"]))
    lines = [
        "| extractor | files | best cost | proved | no result | largest excess | most seconds | all seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["extractor"] for row in rows):
        mine = [row for row in rows if row["extractor"] == name]
        found = [row for row in mine if "cost" in row]
        excess = [row["cost"] / best[row["file"]] - 1 if best[row["file"]] else 0.0 for row in found]
        lines.append(
            f"| `{name}` | {len(mine)} | {sum(e <= SAME for e in excess)} "
            f"| {sum(row.get('proved', False) for row in mine) or ''} | {len(mine) - len(found)} "
            f"| {100 * max(excess, default=0.0):.1f}% | {max((r['seconds'] for r in found), default=0.0):.2f} "
            f"| {sum(r['seconds'] for r in found):.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = ArgumentParser(prog="python -m benchmarks.extraction_gym", description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="extraction-gym files, or folders of them")
    parser.add_argument("--binary", type=Path, required=True, help="extraction-gym, built")
    parser.add_argument(
        "--time-limit", type=float, default=10.0, metavar="S", help="for ours, seconds per file"
    )
    parser.add_argument(
        "--patience", type=float, default=120.0, metavar="S", help="for theirs, before it is killed"
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in files(options.paths):
        name = str(Path(*path.parts[-2:]))
        runs = [theirs(options.binary, path, extractor, options.patience) for extractor in THEIRS]
        new = [{"file": name, **row} for row in (*runs, ours(path, options.time_limit))]
        for row in new:
            told = row.get("error") or f"{row['cost']:.9g}  {row['seconds']:.3f} s"
            print(f"{name}  {row['extractor']}  {told}", flush=True)
        rows += new
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(summary(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
