"""A headless Chromium, driven over its own protocol: open a page, click, type, look."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
         "--remote-debugging-port=0")  # fmt: skip


class Browser:
    """One page. What goes wrong in it, and what it asks the network for, is kept in `problems` and `requests`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Any) -> None:
        self.loop, self.socket = loop, socket
        self.counter = itertools.count(1)
        self.problems: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.counter)
        return self.loop.run_until_complete(self._send(number, method, parameters))

    async def _send(self, number: int, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = json.loads((await asyncio.wait_for(self.socket.receive(), 60)).data)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            event, given = message.get("method"), message.get("params", {})
            if event == "Runtime.exceptionThrown":
                self.problems.append(str(given["exceptionDetails"].get("exception", {}).get("description")))
            if event == "Log.entryAdded" and given["entry"]["level"] == "error":
                self.problems.append(given["entry"]["text"])
            if event == "Network.requestWillBeSent":
                self.requests.append(given["request"]["url"])

    def open(self, page: Path | str, width: int = 1280, height: int = 900) -> None:
        """Show a file, or what is at an address."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        until = time.monotonic() + 60
        while self.evaluate("document.readyState") != "complete":
            assert time.monotonic() < until
            time.sleep(0.05)

    def evaluate(self, script: str) -> Any:
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """Press and release the mouse at the middle of an element."""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'}); const b = e.getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key,
                      windowsVirtualKeyCode=13 if key == "Enter" else 0, **text)  # fmt: skip

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser() -> Iterator[Browser]:
    import aiohttp

    assert CHROMIUM is not None
    loop = asyncio.new_event_loop()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        port = Path(folder) / "DevToolsActivePort"
        process = subprocess.Popen([CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            until = time.monotonic() + 60
            while not (port.exists() and port.read_text().count("\n")):
                assert time.monotonic() < until
                assert process.poll() is None, "Chromium stopped"
                time.sleep(0.05)
            address = f"http://127.0.0.1:{port.read_text().splitlines()[0]}/json"

            async def connected() -> tuple[Any, Any]:
                session = aiohttp.ClientSession()
                async with session.get(address) as answer:
                    pages = [p for p in await answer.json() if p["type"] == "page"]
                return session, await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)

            session, socket = loop.run_until_complete(connected())
            yield Browser(loop, socket)
            loop.run_until_complete(session.close())
        finally:
            process.terminate()
            process.wait(20)
            loop.close()
