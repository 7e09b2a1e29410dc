"""What a tuning has done so far, in a folder: engines that are built, forms that failed, and the rounds of the race.

A run that was interrupted goes on with it; one that is complete deletes it. Every fact is written in one step, after
what it is about. A form during whose build the process died, twice, is not built a third time.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from eqsat_deploy.cache import cache_folder, write
from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.base import Engine
from eqsat_deploy.engines.race import Round
from eqsat_deploy.errors import EngineError, EqsatError

TRIES = 2
WEEK = 7 * 24 * 3600
"""Seconds after which what an interrupted tuning has left is deleted."""


class Journal:
    """The state of one tuning, forms by their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def known(self, name: str) -> dict[str, Any] | None:
        """What is known of a form: why it `failed`, or what it was built to; None while it is to be built."""
        with suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self._of(name) / "known.json").read_text(encoding="utf-8"))
            return found
        return None

    def engine(self, name: str, maker: type[Engine]) -> Engine | None:
        """The engine that was built of a form; None where it does not run here any more, as after an update."""
        known = self.known(name)
        if known is None or "failed" in known:
            return None
        with suppress(EqsatError, OSError, ValueError, KeyError):
            signature = Signature.from_json(known["signature"])
            engine = maker.load_files(self._of(name) / "engine", signature, known["options"])
            if (engine.version, engine.device) == (known["version"], known["device"]):
                return engine
        return None

    @contextmanager
    def building(self, name: str) -> Iterator[None]:
        """Around the build of a form.

        Raises:
            EngineError: the process died in it as often as is tried.
        """
        folder, tries = self._of(name), self._of(name) / "tries"
        shutil.rmtree(folder / "engine", ignore_errors=True)
        folder.mkdir(exist_ok=True)
        before = int(tries.read_text()) if tries.exists() else 0
        if before >= TRIES:
            raise EngineError(f"the process died while it was built, {before} times")
        write(tries, str(before + 1))
        try:
            yield
        finally:  # an exception, and an interruption, are no death
            tries.unlink(missing_ok=True)

    def built(self, name: str, engine: Engine, **facts: Any) -> None:
        """Keep the engine of a form."""
        folder = self._of(name) / "engine"
        folder.mkdir()
        engine.save_files(folder)
        known = {"version": engine.version, "device": engine.device, "options": dict(engine.options),
                 "signature": engine.signature.to_json()}  # fmt: skip
        write(self._of(name) / "known.json", json.dumps(known | facts))

    def failed(self, name: str, reason: str) -> None:
        """Note why a form is out."""
        self._of(name).mkdir(exist_ok=True)
        write(self._of(name) / "known.json", json.dumps({"failed": reason}))

    def rounds(self) -> list[Round]:
        """The rounds so far; a last one that was being written is none, and is cut off."""
        path = self.folder / "rounds.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole, _, rest = text.rpartition("\n")
        if rest:
            write(path, whole and f"{whole}\n")
        return [json.loads(line) for line in whole.splitlines()]

    def keep(self, taken: Mapping[str, float]) -> None:
        """Add a round."""
        with (self.folder / "rounds.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(taken) + "\n")

    def forget_rounds(self) -> None:
        """What was timed is of other engines."""
        (self.folder / "rounds.jsonl").unlink(missing_ok=True)

    def delete(self) -> None:
        """It is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _of(self, name: str) -> Path:
        return self.folder / name.replace(" ", "_")


@contextmanager
def journal(key: str) -> Iterator[Journal]:
    """The journal of what `key` stands for, for this process alone: another one that is at the same gets one of its
    own, which it does not find again."""
    root = cache_folder("tune")
    for old in root.iterdir():
        with suppress(OSError):
            if old.stat().st_mtime < time.time() - WEEK:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    with (root / f"{key}.lock").open("w") as lock:
        if _locked(lock):
            yield Journal(root / key)
            return
    with tempfile.TemporaryDirectory(prefix="eqsat-tune-") as folder:
        yield Journal(Path(folder))


def _locked(file: TextIO) -> bool:
    """Whether this process has the lock on `file` now; it has it until `file` is closed, or it ends."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
