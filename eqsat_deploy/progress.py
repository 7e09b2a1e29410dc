"""Stages of a run as they happen, on a console: a spinner while one takes over a second, a line when it is done."""

from __future__ import annotations

import time
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from eqsat_deploy.stages import listening

PATIENCE = 1.0


class Progress:
    """Inside `with Progress(console):`, stages that take over a second are shown. The spinner needs a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._running: list[tuple[str, float]] = []
        self._exits = ExitStack()
        self._spinner = Spinner("dots")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            live = Live(
                get_renderable=self._render, console=self._console, transient=True, refresh_per_second=8
            )
            self._exits.enter_context(live)
        self._exits.enter_context(listening(self._listen))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exits.close()

    def _listen(self, stage: str, seconds: float | None) -> None:
        if seconds is None:
            self._running.append((stage, time.perf_counter()))
            return
        self._running.pop()
        if seconds >= PATIENCE:
            self._console.print(Text(f"{stage} {seconds:.1f} s", style="dim"))

    def _render(self) -> Spinner | Text:
        if not self._running:
            return Text()
        stage, start = self._running[-1]
        taken = time.perf_counter() - start
        if taken < PATIENCE:
            return Text()
        self._spinner.update(text=Text(f"{stage} {taken:.0f} s"))
        return self._spinner
