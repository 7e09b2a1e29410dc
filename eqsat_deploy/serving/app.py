"""The routes of the server, and what becomes of a request that is late, large, torn or one too many."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eqsat_deploy import __version__
from eqsat_deploy.errors import EqsatError, InputError
from eqsat_deploy.serving.batcher import Batcher, Closed, QueueFull
from eqsat_deploy.serving.metrics import Metrics
from eqsat_deploy.serving.model import VERSION, Model
from eqsat_deploy.serving.protocol import JSON_LENGTH, read_request, write_response

log = logging.getLogger("eqsat_deploy.serving")

DROPPED = 4
"""Requests of up to so many times the size allowed are read before they are refused."""

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """`delay`, `queue` and `workers` as `Batcher` has them, the last as many as an engine runs at a time where it is
    None; bytes of a request; seconds from its headers to its response."""

    delay: float = 0.001
    queue: int = 64
    workers: int | None = None
    bytes: int = 64 << 20
    seconds: float = 30.0


class Refused(EqsatError):
    """A request that is answered with `status`."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def application(models: Sequence[Model], limits: Limits = Limits()) -> Starlette:
    """The server of `models` as an ASGI application, which finishes what it accepted before it shuts down."""
    return Server(models, limits).app


class Server:
    """Models with a batcher each, once the application has started."""

    def __init__(self, models: Sequence[Model], limits: Limits) -> None:
        self.models = {model.name: model for model in models}
        if len(self.models) != len(models):
            names = [model.name for model in models]
            twice = next(name for name in names if names.count(name) > 1)
            raise InputError(f"two models are called {twice!r}: give one as NAME=DIR")
        self.limits = limits
        self.metrics = Metrics()
        self.batchers: dict[str, Batcher] = {}
        one = "/v2/models/{model}"
        each = [one, one + "/versions/{version}"]
        self.app = Starlette(
            routes=[
                Route("/v2", self._server),
                Route("/v2/health/live", self._live),
                Route("/v2/health/ready", self._ready),
                Route("/metrics", self._metrics),
                *(Route(path, self._model) for path in each),
                *(Route(path + "/ready", self._model_ready) for path in each),
                *(Route(path + "/infer", self._infer, methods=["POST"]) for path in each),
            ],
            exception_handlers={HTTPException: _as_error, Exception: _as_bug},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        for name, model in self.models.items():
            ran = self.metrics.watch(name, lambda name=name: self.batchers[name].waiting)  # type: ignore[misc]
            self.batchers[name] = Batcher(
                model.engine.flat, limit=model.limit, delay=self.limits.delay, queue=self.limits.queue,
                workers=self.limits.workers or model.one.concurrency, ran=ran,
            )  # fmt: skip
        try:
            yield
        finally:
            await asyncio.gather(*(batcher.close() for batcher in self.batchers.values()))

    async def _server(self, request: Request) -> Response:
        return JSONResponse(
            {"name": "eqsat-deploy", "version": __version__, "extensions": ["binary_tensor_data"]}
        )

    async def _live(self, request: Request) -> Response:
        return Response()

    async def _ready(self, request: Request) -> Response:
        return Response(status_code=200 if self.batchers else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _model(self, request: Request) -> Response:
        return JSONResponse(self._found(request).metadata)

    async def _model_ready(self, request: Request) -> Response:
        self._found(request)
        return Response()

    def _found(self, request: Request) -> Model:
        name, version = request.path_params["model"], request.path_params.get("version", VERSION)
        model = self.models.get(name)
        if model is None or version != VERSION:
            known = ", ".join(f"{name} version {VERSION}" for name in self.models)
            raise HTTPException(404, f"no model {name[:100]!r} version {version[:20]!r} here, but {known}")
        return model

    async def _infer(self, request: Request) -> Response:
        model = self._found(request)
        begin = time.monotonic()
        about: dict[str, Any] = {"model": model.name}
        try:
            async with asyncio.timeout(self.limits.seconds):
                response = await self._answer(request, model, about)
        except ClientDisconnect:
            response = _error(499, "the client went away")
        except TimeoutError:
            status, what = (504, "answered") if "samples" in about else (408, "sent")
            response = _error(status, f"not {what} within {self.limits.seconds:g} s", connection="close")
        except QueueFull as error:
            response = _error(503, str(error), **{"retry-after": str(error.seconds)})
        except Closed as error:
            response = _error(503, str(error), **{"retry-after": "1", "connection": "close"})
        except Refused as error:
            response = _error(error.status, str(error), **error.headers)
        except InputError as error:
            response = _error(400, str(error))
        except EqsatError as error:
            response = _error(500, str(error))
        taken = time.monotonic() - begin
        self.metrics.requests.labels(model.name, response.status_code).inc()
        self.metrics.seconds.labels(model.name).observe(taken)
        log.info(
            "infer", extra={"about": about | {"status": response.status_code, "ms": round(taken * 1e3, 3)}}
        )
        return response

    async def _answer(self, request: Request, model: Model, about: dict[str, Any]) -> Response:
        batcher = self.batchers[model.name]
        full = False
        try:
            batcher.check_room()
        except QueueFull:
            full = True  # said when the body has been read: who is cut off while sending reads no answer
        body = await self._body(request, keep=not full)
        batcher.check_room()
        if full:
            raise QueueFull(1)
        names = [output.name for output in model.outputs]
        asked = read_request(body, request.headers.get(JSON_LENGTH), model.inputs, names)
        samples = model.check(asked.tensors)
        about |= {"id": asked.id, "samples": samples}
        results = await _unless_gone(request, batcher.submit(asked.tensors, samples))
        found = dict(zip(names, (value.cpu() for value in results), strict=True))
        content, headers = write_response(model.name, VERSION, asked, found)
        return Response(content, headers=headers)

    async def _body(self, request: Request, keep: bool) -> bytearray:
        """What the client sends; read and dropped where it is not to be kept."""
        if "content-encoding" in request.headers:
            raise Refused(415, "compressed requests are not read", connection="close")
        announced = request.headers.get("content-length", "0")
        too_large = Refused(413, f"requests of up to {self.limits.bytes} bytes are read", connection="close")
        # Who is cut off while sending may read no answer: what is little too large is read to its end, and dropped.
        most = DROPPED * self.limits.bytes
        if announced.isdecimal() and (len(announced) >= 20 or int(announced) > most):
            raise too_large
        body, size = bytearray(), 0
        async for chunk in request.stream():
            size += len(chunk)
            if size > most:
                raise too_large
            if keep and size <= self.limits.bytes:
                body += chunk
        if size > self.limits.bytes:
            raise too_large
        return body


async def _unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is cancelled when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(status: int, message: str, **headers: str) -> Response:
    return JSONResponse({"error": message}, status_code=status, headers=headers)


async def _as_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)


async def _as_bug(request: Request, error: Exception) -> Response:
    return _error(500, f"{type(error).__name__}: {error}")


class JsonLines(logging.Formatter):
    """A line of JSON for each record: when, how grave, what, and what it is about."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        about = getattr(record, "about", {})
        line = {
            "time": round(record.created, 3),
            "level": record.levelname,
            "event": record.getMessage(),
            **about,
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
