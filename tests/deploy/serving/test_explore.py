"""The e-graph live: what changes do, who may ask, and the page in a browser where there is one."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from eqsat_deploy.capture import capture
from eqsat_deploy.errors import InputError, UnknownNameError
from eqsat_deploy.lower import lower
from eqsat_deploy.search import Limits, explore
from eqsat_deploy.selection import TARGET
from eqsat_deploy.serving.session import Session
from eqsat_deploy.targets import find_cost
from tests.support.browser import CHROMIUM

NET = """
import torch
from torch import nn


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 512, 3))
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 1000)

    def forward(self, x):
        return self.fc(torch.flatten(self.pool(self.convs(x)), 1))


def make():
    return Head().eval()
"""
COST = "openvino_int8"
FAMILY = "linear-to-convolution"
RULE = "flatten-linear-as-convolution"


def made() -> Any:
    known: dict[str, Any] = {}
    exec(NET, known)
    return known["make"]()


IMAGE = torch.zeros(2, 3, 32, 32)


@pytest.fixture
def session() -> Session:
    lowered = lower(capture(made(), (IMAGE,)))
    return Session("Head", lowered, find_cost(COST), [], Limits())


# -- changes -----------------------------------------------------------------------------------------------


def test_a_rule_that_is_put_in_adds_what_a_search_with_it_has(session: Session) -> None:
    before = session.state()
    assert session.on == []
    session.set_rules([FAMILY])
    state = session.state()
    expected = explore(made(), IMAGE, cost=COST, rules=[FAMILY])
    assert state["cost"] == pytest.approx(expected.solution.cost)
    assert state["before"] == before["cost"]
    assert state["nodes_before"] == before["nodes"] < state["nodes"] == len(expected.space.nodes)
    data = state["egraph"]
    assert [data["rules"][index] for index in data["fresh"]] == [RULE]
    assert any(set(node[7]) & set(data["fresh"]) for node in data["nodes"])
    on = [r["name"] for f in state["families"] for r in f["rules"] if r["on"]]
    assert on == session.on == [RULE]
    assert not {f["name"] for f in state["families"]} & set(TARGET)
    session.set_rules([])
    again = session.state()
    assert (again["cost"], again["nodes"]) == (before["cost"], before["nodes"])
    assert again["egraph"]["fresh"] == []


def test_a_price_changes_the_form_and_comes_back(session: Session) -> None:
    session.set_rules([FAMILY])
    state = session.state()
    dear = next(
        i for i, n in enumerate(state["egraph"]["nodes"]) if n[5] and n[1].startswith("conv2d") and n[8]
    )
    session.set_price(dear, 1000.0)
    changed = session.state()
    assert changed["egraph"]["nodes"][dear][4] == pytest.approx(1000.0, rel=1e-3)
    assert not changed["egraph"]["nodes"][dear][5]
    assert state["cost"] < changed["cost"] < state["cost"] + 500
    assert {"new", "gone"} <= {launch["kind"] for launch in changed["launches"]}
    assert [p["price"] for p in changed["prices"]] == [1000.0]
    session.set_rules([])  # prices are of kernels, and stay
    assert session.state()["prices"] == changed["prices"]
    session.set_rules([FAMILY])
    session.reset_prices()
    assert session.state()["cost"] == pytest.approx(state["cost"])
    session.set_price(dear, 0.0)
    assert session.state()["cost"] < state["cost"]
    session.set_price(dear, None)
    assert session.state()["cost"] == pytest.approx(state["cost"])
    assert session.state()["prices"] == []


def test_what_does_not_work_changes_nothing(session: Session) -> None:
    session.set_rules([FAMILY])
    state, version = session.state(), session.version
    view = next(i for i, n in enumerate(state["egraph"]["nodes"]) if n[1] == "reshape")
    for given in (lambda: session.set_price(view, 1.0), lambda: session.set_price(10**6, 1.0),
                  lambda: session.set_price(-1, 1.0), lambda: session.set_price(0, -1.0),
                  lambda: session.set_price(0, float("nan"))):  # fmt: skip
        with pytest.raises(InputError):
            given()
    with pytest.raises(UnknownNameError, match=RULE):
        session.set_rules(["flatten-linear-as-convolutoin"])
    assert session.version == version
    assert session.state() == state


# -- over HTTP ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A process of `eqsat-deploy explore`, which has to end by itself when it is told to."""
    folder = tmp_path_factory.mktemp("explored")
    (folder / "net.py").write_text(NET)
    command = [sys.executable, "-m", "eqsat_deploy", "explore", "net.py:make", "--input", "2x3x32x32", "--cost",
               COST, "--no-browser", "--quiet"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline().strip()
        try:
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", line), (
                line or process.stderr.read()
            )
            yield line
        finally:
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
        assert code == 0
        assert "Traceback" not in process.stderr.read()


def ask(address: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    base, _, token = address.partition("/?token=")
    given = {"X-Token": token, **{name.replace("_", "-"): value for name, value in headers.items()}}
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data=data, headers=given)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text, status = answer.read(), answer.status
    except urllib.error.HTTPError as error:
        text, status = error.read(), error.code
    return status, json.loads(text) if text.startswith(b"{") else text.decode()


def test_it_answers_who_has_the_token_from_its_own_page_alone(address: str) -> None:
    base, _, token = address.partition("/?token=")
    change = {"rules": []}
    assert ask(address, "/state")[0] == 200
    assert ask(address, f"/?token={token}")[0] == 200
    assert ask(address, "/state", Origin=base)[0] == 200
    assert ask(address, "/?token=wrong")[0] == 403
    assert ask(address, "/")[0] == 403
    for path, body in (("/state", None), ("/change", change)):
        assert ask(address, path, body, X_Token="wrong")[0] == 403
        assert ask(address, path, body, X_Token="")[0] == 403
        assert ask(address, path, body, Origin="http://example.com")[0] == 403
        assert ask(address, path, body, Origin="null")[0] == 403
        assert ask(address, path, body, Host="example.com")[0] == 400
    assert ask(address, "/state")[1]["version"] == 0


def test_changes_over_http(address: str) -> None:
    _, first = ask(address, "/state")
    names = [r["name"] for f in first["families"] for r in f["rules"] if r["on"]]
    status, without = ask(address, "/change", {"rules": [n for n in names if n != RULE]})
    assert status == 200
    assert without["cost"] > first["cost"]
    old = {"node": 0, "version": first["version"], "price": 1.0}
    assert ask(address, "/change", old)[0] == 400  # of an e-graph that is gone
    for wrong in (
        b"",
        b"{",
        {"rules": 3},
        {"no": 1},
        {"rules": ["none-of-them"]},
        {"node": 0, "version": 1, "price": -1},
    ):
        status, answer = ask(address, "/change", wrong)
        assert status == 400, wrong
        assert answer["error"]
    assert ask(address, "/change", b" " * (1 << 21))[0] == 413
    status, again = ask(address, "/change", {"rules": names})
    assert (status, again["cost"]) == (200, pytest.approx(first["cost"]))


# -- in a browser ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    pytest.importorskip("aiohttp")
    from tests.support.browser import browser

    with browser() as opened:
        yield opened


def wait_for(window: Any, condition: str) -> None:
    until = time.monotonic() + 60
    while not window.evaluate(condition):
        assert time.monotonic() < until, condition
        time.sleep(0.05)


SAID = "document.querySelector('.ex-said').textContent"
IDLE = "!document.body.classList.contains('busy') && document.querySelectorAll('.eg-class').length > 0"


@pytest.mark.parametrize("size", [(1280, 900), (768, 1024), (390, 844)])
def test_the_page_opens_at_three_sizes(window: Any, address: str, size: tuple[int, int]) -> None:
    window.problems.clear()
    window.requests.clear()
    window.open(address, *size)
    wait_for(window, IDLE)
    assert window.evaluate("document.documentElement.scrollWidth") <= size[0]
    assert window.problems == []
    assert {url.partition("?")[0] for url in window.requests} <= {
        address.partition("?")[0], address.partition("?")[0] + "state", address.partition("?")[0] + "favicon.ico"
    }  # fmt: skip
    names = window.send("Accessibility.getFullAXTree")["nodes"]
    controls = [
        n for n in names if n.get("role", {}).get("value") in ("checkbox", "button", "spinbutton", "combobox")
    ]
    assert len(controls) > 20
    assert [n for n in controls if not n.get("name", {}).get("value")] == []


def test_a_family_is_left_out_and_put_in_and_a_price_changed(window: Any, address: str) -> None:
    window.open(address)
    wait_for(window, IDLE)
    _, first = ask(address, "/state")
    tick = f"input[data-family={FAMILY}]"
    forms = "[...document.querySelectorAll('.eg-form.chosen text')].map(t => t.textContent).join(' ')"
    assert "reshape(e" in window.evaluate(forms)
    window.click(tick)
    wait_for(window, f"{IDLE} && {SAID}.includes('→')")
    assert not window.evaluate(f"document.querySelector('{tick}').checked")
    assert "reshape(e" not in window.evaluate(forms)
    assert window.evaluate("document.querySelectorAll('.eg-form.fresh').length") == 0
    assert ask(address, "/state")[1]["cost"] > first["cost"]
    window.click(tick)
    wait_for(window, f"{IDLE} && {SAID}.includes('dashed red')")
    assert window.evaluate("document.querySelectorAll('.eg-form.fresh').length") > 0
    assert ask(address, "/state")[1]["cost"] == pytest.approx(first["cost"])
    window.evaluate(
        "[...document.querySelectorAll('.eg-form.chosen.fresh')].find(f => f.textContent.startsWith('conv2d'))"
        ".dispatchEvent(new Event('click'))"
    )
    window.evaluate("document.querySelector('#ex-amount').value = 500")
    window.click("#ex-price button[type=submit]")
    wait_for(window, f"{IDLE} && {SAID}.includes('at other prices')")
    assert "reshape(e" not in window.evaluate(forms)
    assert "no longer" in window.evaluate("document.querySelector('#ex-launches').textContent")
    window.click("#ex-price button[type=button]")
    wait_for(window, f"{IDLE} && document.querySelector('#ex-price button[type=button]').disabled")
    assert ask(address, "/state")[1]["cost"] == pytest.approx(first["cost"])
