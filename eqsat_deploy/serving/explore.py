"""The page of an e-graph that lives in this process: for the one who started it, on this machine, and nobody else.

It listens at the loopback address alone. Every request has to carry a token that was made when it started, which other
users of the machine and other sites' pages do not know; those pages may not read answers, nor send what is not a plain
form, and requests under another host name are refused.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from html import escape
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from eqsat_deploy.errors import EngineError, EqsatError
from eqsat_deploy.report.view import asset
from eqsat_deploy.serving.server import run
from eqsat_deploy.serving.session import Session

HOST = "127.0.0.1"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
LARGEST = 1 << 20
"""Bytes of a request."""


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What is asked for: `rules` that are to be on; or a `price`, null for the model's own, of the e-node `node` of
    `version`; or all prices as they were."""

    rules: list[str] | None = None
    node: int | None = None
    version: int | None = None
    price: float | None = None
    reset: bool = False


def application(session: Session, token: str, opened: Callable[[], None] | None = None) -> Starlette:
    """The page and what it asks for; `opened` is called once it can be asked."""
    worker = ThreadPoolExecutor(1)  # one change at a time, and egglog in one thread

    async def work(act: Callable[[], None]) -> Response:
        def done() -> dict[str, Any]:
            act()
            return session.state()

        try:
            return JSONResponse(
                await asyncio.get_running_loop().run_in_executor(worker, done), headers=HEADERS
            )
        except EqsatError as error:
            return _error(400, str(error))

    async def page(request: Request) -> Response:
        if not _known(request.query_params.get("token"), token):
            return _error(403, "open the address that eqsat-deploy explore printed, with its token")
        return HTMLResponse(_page(session.name, token), headers=HEADERS)

    async def state(request: Request) -> Response:
        return _refused(request, token) or await work(lambda: None)

    async def change(request: Request) -> Response:
        if (refused := _refused(request, token)) is not None:
            return refused
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST:
                return _error(413, f"requests of up to {LARGEST} bytes are read")
        try:
            asked = msgspec.json.decode(body, type=Change)
        except msgspec.DecodeError as error:
            return _error(400, f"the request is no change: {error}")

        def act() -> None:
            if asked.rules is not None:
                session.set_rules(asked.rules)
            elif asked.reset:
                session.reset_prices()
            elif asked.node is not None:
                if asked.version != session.version:
                    raise EqsatError("the e-graph has changed since: load the page again")
                session.set_price(asked.node, asked.price)

        return await work(act)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if opened is not None:
            opened()
        try:
            yield
        finally:
            worker.shutdown(cancel_futures=True)

    return Starlette(
        routes=[Route("/", page), Route("/state", state), Route("/change", change, methods=["POST"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
        lifespan=lifespan,
    )


def explore(session: Session, *, port: int = 0, browser: bool = True, ready: Callable[[str], None]) -> None:
    """Serve `session` to this machine until SIGINT or SIGTERM.

    Args:
        session: the model.
        port: 0 for any that is free.
        browser: open the page.
        ready: called with the page's address, before it is opened.

    Raises:
        EngineError: the port is taken.
    """
    token = secrets.token_urlsafe(24)
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
            listening.listen()  # from here on who comes early waits
        except OSError as error:
            raise EngineError(
                f"cannot listen at {HOST}:{port}: {error}; --port 0 takes one that is free"
            ) from error
        address = f"http://{HOST}:{listening.getsockname()[1]}/?token={token}"

        def opened() -> None:
            ready(address)
            if browser:
                threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

        run(application(session, token, opened), HOST, port, sockets=[listening], timeout_graceful_shutdown=1)


def _known(given: str | None, token: str) -> bool:
    return given is not None and secrets.compare_digest(given.encode(), token.encode())


def _refused(request: Request, token: str) -> Response | None:
    """Who sends no token, or comes from another site's page."""
    origin = request.headers.get("origin")
    if not _known(request.headers.get("x-token"), token):
        return _error(403, "the token is missing or another one")
    if origin is not None and origin != f"http://{request.headers.get('host')}":
        return _error(403, f"pages of {origin[:100]} may not ask here")
    return None


def _error(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status_code=status, headers=HEADERS)


def _page(name: str, token: str) -> str:
    title = f"{escape(name)}: the e-graph, live"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="token" content="{escape(token)}"><title>{title}</title><style>{asset("page.css")}</style></head>
<body class="live"><main><h1>{title}</h1>
<p class="ex-said" role="status" aria-live="polite">Loading.</p>
<div class="ex-panes"><div id="ex-rules"></div>
<div><form id="ex-price"></form><div id="egraph"></div></div></div>
<section><h2>The chosen form</h2><div id="ex-launches" class="scroll tall" tabindex="0" role="region"
aria-label="kernels of the chosen form"></div></section></main>
<script>{asset("dagre.min.js")}</script><script>{asset("egraph.js")}</script><script>{asset("explore.js")}</script>
</body></html>"""
