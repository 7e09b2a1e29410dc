"""The process that serves: a socket, logs, signals."""

from __future__ import annotations

import importlib.util
import logging
import signal
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eqsat_deploy.errors import EngineError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

REQUIRED = ("starlette", "uvicorn", "prometheus_client")


def check_installed() -> None:
    """Raises `EngineError`, which says how to get it, where what serves is not installed."""
    if missing := [name for name in REQUIRED if importlib.util.find_spec(name) is None]:
        raise EngineError(f"{', '.join(missing)} not installed: pip install 'eqsat-deploy[serve]'")


def serve(
    specs: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limit: int | None = None,
    delay: float = 0.001,
    queue: int = 64,
    workers: int | None = None,
    megabytes: int = 64,
    seconds: float = 30.0,
    quiet: bool = False,
) -> None:
    """Serve artifacts (`DIR` or `NAME=DIR`) until SIGINT or SIGTERM; then finish what was accepted, and return.

    Args:
        specs: of the artifacts, each of which is loaded and run before the socket is opened.
        host: the address to listen at: by default this machine alone can connect, and nobody is asked who they are.
        port: its port; 0 for any that is free, which the log says.
        limit: samples run together, see `model.served`.
        delay: seconds that a request waits for others to be run with.
        queue: requests that wait, of each model; one more is answered 503 with `Retry-After`.
        workers: batches of a model that run at a time; as many as its engine runs at a time unless given.
        megabytes: of a request.
        seconds: from a request's headers to its response.
        quiet: log errors alone.

    Raises:
        EngineError: starlette, uvicorn or prometheus_client is not installed, or the port is taken.
        ArtifactError: an artifact is none, or does not run here.
        InputError: a name is of no use, or there twice.
    """
    check_installed()
    from eqsat_deploy.serving.app import JsonLines, Limits, application, log
    from eqsat_deploy.serving.model import load_model

    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in (log.name, "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.ERROR if quiet else logging.INFO)
    models = [load_model(spec, limit) for spec in specs]
    app = application(models, Limits(delay, queue, workers, megabytes << 20, seconds))
    connections = 4 * queue * len(models) + 64
    run(app, host, port, limit_concurrency=connections, timeout_graceful_shutdown=int(seconds) + 5)


def run(
    app: ASGIApp, host: str, port: int, sockets: list[socket.socket] | None = None, **settings: Any
) -> None:
    """Serve an application until SIGINT or SIGTERM; with `sockets`, at these.

    Raises:
        EngineError: the port is taken.
    """
    import uvicorn

    config = uvicorn.Config(
        app, host=host, port=port, log_config=None, access_log=False, server_header=False, **settings
    )
    # uvicorn raises the signal that stopped it again once it is done, for those who were there before it: nobody.
    before = {number: signal.signal(number, _stopped) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(config).run(sockets)
    except SystemExit as error:  # how uvicorn says that it could not start; its log has why
        raise EngineError(
            f"cannot listen at {host}:{port}: it is taken, or not an address of this machine"
        ) from error
    finally:
        for number, handler_before in before.items():
            signal.signal(number, handler_before)


def _stopped(number: int, frame: object) -> None:
    pass
