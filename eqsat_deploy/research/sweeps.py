"""Sweeps: many models, strategies and seeds, on any `concurrent.futures.Executor`, into one file that grows.

    jobs = [Job(spec, strategy, seed) for spec in specs for strategy in ("joint", "mcts") for seed in range(5)]
    rows = sweep(jobs, "orderings.jsonl", lambda: ProcessPoolExecutor(2))

The file has a line for every job that is done. Run again, a sweep does what is not in it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eqsat_deploy.errors import EqsatError, InputError

AHEAD = 64
"""Jobs that are under way at once."""


@dataclass(frozen=True)
class Job:
    """One strategy with one seed on one model, which is named as on the command line; `effort` has the fields of
    `Effort` that are not to be as usual."""

    spec: str
    strategy: str
    seed: int = 0
    cost: str = "auto"
    effort: tuple[tuple[str, float], ...] = ()

    @property
    def key(self) -> str:
        """What the job is known by in the file."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def run_job(job: Job) -> dict[str, Any]:
    """What a job finds, as JSON values."""
    from eqsat_deploy.research.environment import Effort
    from eqsat_deploy.research.orderings import compare_orderings
    from eqsat_deploy.specs import load_model

    effort = Effort(**dict(job.effort))  # type: ignore[arg-type]
    table = compare_orderings(
        load_model(job.spec), strategies=[job.strategy], seeds=[job.seed], cost=job.cost, effort=effort
    )
    return {
        "model": table.model,
        "unit": table.unit,
        "actions": list(table.families),
        **asdict(table.outcomes[0]),
    }


def sweep(
    jobs: Iterable[Job], path: str | Path, executor: Executor | Callable[[], Executor], *, tries: int = 3,
    run: Callable[[Any], dict[str, Any]] = run_job,
) -> list[dict[str, Any]]:  # fmt: skip
    """Do the jobs that the file does not have yet, and return all its rows of these jobs, in their order.

    Args:
        jobs: what to do; each is written once, as a line of JSON, when it is done.
        path: the file, which is only ever appended to; a last line that a crash cut short is taken off first.
        executor: where to run them: an executor, or a function that makes one, which is called again when workers died
            and took their executor with them.
        tries: how often a job is tried whose worker died or that raised.
        run: what does a job; it, the jobs and their results go between processes.

    Raises:
        InputError: the file is not one that a sweep wrote.
        EqsatError: some jobs failed every time; all others are in the file.
    """
    file, wanted = Path(path), {job.key: job for job in jobs}
    _mend(file)
    rows = {key: row for key, row in _read(file) if key in wanted}
    left = {key: job for key, job in wanted.items() if key not in rows}
    failures: Counter[str] = Counter()
    errors: dict[str, BaseException] = {}
    suspects: list[
        str
    ] = []  # jobs that were under way when workers died: each is tried alone, to know whose fault it was
    while left:
        pool = executor if isinstance(executor, Executor) else executor()
        batch = {suspects[0]: left[suspects[0]]} if suspects else left
        broken = False
        for key, result in _completed(pool, dict(batch), run):
            suspects = [s for s in suspects if s != key]
            if not isinstance(result, BaseException):
                row = {"key": key, "job": asdict(left.pop(key)), "result": result}
                _append(file, row)
                rows[key] = row
                continue
            errors[key] = result
            broken |= isinstance(result, BrokenExecutor)
            if isinstance(result, BrokenExecutor) and len(batch) > 1:
                suspects.append(key)
                continue
            failures[key] += 1
            if failures[key] >= tries:
                del left[key]
            elif isinstance(result, BrokenExecutor):
                suspects.append(key)
        if pool is not executor:
            pool.shutdown(cancel_futures=True)
        elif broken and left:
            raise EqsatError(
                f"workers died and took their executor with them: run again to go on with {len(left)} jobs, or pass a "
                "function that makes an executor"
            )
    failed = [key for key in wanted if key not in rows]
    if failed:
        job, error = wanted[failed[0]], errors[failed[0]]
        raise EqsatError(
            f"{len(failed)} of {len(wanted)} jobs failed {tries} times, such as {job}: {error!r}"
        ) from error
    return [rows[key] for key in wanted]


def _completed(
    pool: Executor, jobs: dict[str, Any], run: Callable[[Any], dict[str, Any]]
) -> Iterator[tuple[str, dict[str, Any] | BaseException]]:
    """Results, or what was raised, as they come. No more than `AHEAD` jobs are under way at once; where the executor
    breaks, the others are not begun."""
    waiting = list(jobs.items())
    futures: dict[Future[dict[str, Any]], str] = {}
    while waiting or futures:
        while waiting and len(futures) < AHEAD:
            key, job = waiting[0]
            try:
                futures[pool.submit(run, job)] = key
            except BrokenExecutor as error:
                waiting = []
                if not futures:
                    yield key, error
                break
            waiting.pop(0)
        for future in wait(futures, return_when=FIRST_COMPLETED).done if futures else ():
            raised = future.exception()
            if isinstance(raised, BrokenExecutor):
                waiting = []
            yield futures.pop(future), raised or future.result()


def _mend(file: Path) -> None:
    if not file.exists():
        return
    data = file.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with file.open("r+b") as opened:
            opened.truncate(whole)


def _read(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines() if file.exists() else (), 1):
        try:
            row = json.loads(line)
            yield row["key"], row
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}, line {number}: a sweep did not write this ({error})") from error


def _append(file: Path, row: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(row) + "\n")
        opened.flush()
        os.fsync(opened.fileno())
