"""The page about one optimization and the view of its e-graph, opened in a browser where there is one."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from eqsat_deploy.optimizer import optimize
from eqsat_deploy.report.view import View, egraph_data
from tests.deploy.test_research import IMAGE, Head, build
from tests.support.browser import CHROMIUM

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
OPEN_BOXES = "document.querySelectorAll('.eg-class').length"
STATUS = "document.querySelector('.eg-status').textContent"


class Deep(nn.Module):
    """More e-classes than are shown at once."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(6))
        )
        self.head = Head()
        self.head.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.head(self.layers(self.stem(x)))


@pytest.fixture(scope="module")
def module():
    return optimize(build(Head), IMAGE, cost="openvino_int8")


@pytest.fixture(scope="module")
def report(module):
    return module.report


@pytest.fixture(scope="module")
def deep():
    return optimize(build(Deep), IMAGE, cost="trt_int8").report


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "head.html"
    report.to_html(path)
    return path


@pytest.fixture(scope="module")
def window():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    pytest.importorskip("aiohttp")
    from tests.support.browser import browser

    with browser() as opened:
        yield opened


# -- the data ----------------------------------------------------------------------------------------------


def test_the_data_has_every_form_once_with_price_rule_and_birth(deep):
    found = deep.searches.found
    data = egraph_data(found)
    classes = {c[0]: c for c in data["classes"]}
    assert not any(found.space.classes[number].constant for number in classes)
    chosen = [node for node in data["nodes"] if node[5]]
    assert sum(node[4] for node in chosen) == pytest.approx(found.solution.cost, rel=1e-3)
    members = [m for m in dict.fromkeys([*found.space.choices, *found.space.nodes]) if m[0] in classes]
    assert len(data["nodes"]) == len(members)
    for owner, _, _, reads, _, is_chosen, _, rules, born in data["nodes"]:
        assert owner in classes
        assert set(reads) <= set(classes)
        assert bool(rules) == (born > 0)
        assert 0 <= born <= len(data["phases"])
        assert not is_chosen or not classes[owner][5]
    assert all(bool(c[5]) != any(n[5] for n in data["nodes"] if n[0] == c[0]) for c in data["classes"])


def test_what_only_rules_made_belongs_to_the_module_that_reads_it(deep):
    data = egraph_data(deep.searches.found)
    made = [c for c in data["classes"] if re.fullmatch(r"e\d+", c[1])]
    assert made
    assert all(c[4] for c in made)


# -- the page as text --------------------------------------------------------------------------------------


class Outline(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.ids, self.links, self.open, self.outside = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.outside += [given[k] for k in ("src", "srcset") if k in given] + (
            [given["href"]] if tag == "link" else []
        )
        if tag not in ("meta", "link", "br", "rect", "path", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("rect", "path"):
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_carries_all_it_needs(page):
    outline = Outline()
    outline.feed(page.read_text())
    assert outline.open == []
    assert len(set(outline.ids)) == len(outline.ids)
    assert outline.outside == []
    assert {link.removeprefix("#") for link in outline.links} <= set(outline.ids)
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert "http" not in re.sub(
        r"http://www\.w3\.org/2000/svg|https?://[\w./-]*dagre[\w./-]*", "", page.read_text()
    )


def test_the_page_says_what_the_report_says(report, page):
    text = html.unescape(re.sub("<[^>]+>", " ", page.read_text()))
    assert f"{report.plain_cost:,.1f} → {report.cost:,.1f}" in text
    assert ("proved to be the cheapest" in text) == report.proved
    for rule in report.used_rules():
        assert rule in text
    for pair in report.diff().pairs:
        assert all(f"{k.tensor} = {k.kernel}({', '.join(k.reads)})" in text for k in pair if k)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_was_measured_and_compared_is_shown_when_it_is_given():
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 1)
    ).eval()
    images = torch.randn(2, 3, 24, 24)
    module = optimize(model, images, cost="openvino_int8")
    quantized = module.quantize([images])
    engine = quantized.build()
    text = module.report.to_html(
        engine=engine,
        accuracy={"INT8": 0.7583},
        contribution=module.report.contribution(),
        sensitivity=quantized.sensitivity([images]),
    )
    assert "75.83%" in text
    assert f"{engine.report['engine']['shipped']} form shipped" in text
    assert "What each family is worth" in text
    integer = sum(k.precision == "int8" for k in quantized.meta["eqsat_deploy"].placement.kernels)
    assert len(re.findall(r"[\d.]+ dB</span>", text)) == integer


def test_names_in_the_page_are_escaped():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.relu(x)

    Odd.__name__ = "</script><b>"
    text = optimize(Odd().eval(), torch.randn(2, 3), cost="kernels").report.to_html()
    assert "<b>" not in text
    assert text.count("</script>") == 3


def test_a_report_without_an_egraph_is_a_page_too(report):
    from dataclasses import replace

    text = replace(report, searches=type(report.searches)()).to_html()
    assert "egraph-data" not in text
    assert "The rules that mattered" in text


def test_a_view_in_a_notebook_is_a_frame(report):
    shown = report.view("fc")._repr_html_()
    assert shown.startswith("<iframe")
    inner = html.unescape(re.search('srcdoc="([^"]*)"', shown).group(1))
    data = json.loads(re.search('id="egraph-data">(.*?)</script>', inner, re.DOTALL).group(1))
    assert data["start"] == report.searches.found.classes_of("fc")


# -- in a browser ------------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize("size", [(1280, 900), (768, 1024), (390, 844)])
def test_the_page_opens_at_three_sizes(window, page, size):
    window.requests.clear()
    window.problems.clear()
    window.open(page, *size)
    assert window.evaluate(OPEN_BOXES) > 5
    assert window.evaluate("document.documentElement.scrollWidth") <= size[0], (
        "the page itself scrolls sideways"
    )
    assert window.problems == []
    assert window.requests == [page.as_uri()]


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(window, page, scheme):
    window.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    window.open(page)
    worst = window.evaluate("""(() => {
      const linear = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
      const light = c => {
        const [r, g, b] = c.match(/[\\d.]+/g).map(v => linear(v / 255));
        return .2126 * r + .7152 * g + .0722 * b; };
      const ratio = (one, other) => {
        const [a, b] = [light(one), light(other)].sort((x, y) => y - x);
        return (a + .05) / (b + .05); };
      const behind = e => {
        const c = getComputedStyle(e).backgroundColor;
        return /, 0\\)$|transparent/.test(c) ? behind(e.parentElement) : c; };
      let worst = [99, ""];
      for (const e of document.querySelectorAll("main *")) {
        const worded = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
        if (e.closest("svg, script") || !e.checkVisibility() || !worded) continue;
        const found = ratio(getComputedStyle(e).color, behind(e));
        if (found < worst[0]) worst = [found, e.outerHTML.slice(0, 120)];
      }
      for (const t of document.querySelectorAll(".eg-form text")) {
        const found = ratio(getComputedStyle(t).fill, getComputedStyle(t.parentNode.querySelector("rect")).fill);
        if (found < worst[0]) worst = [found, t.textContent];
      }
      return worst; })()""")
    window.send("Emulation.setEmulatedMedia", features=[])
    assert worst[0] >= 4.5, worst


@needs_browser
def test_every_control_has_a_name(window, page):
    window.open(page)
    tree = window.send("Accessibility.getFullAXTree")["nodes"]
    roles = (
        "button",
        "searchbox",
        "combobox",
        "slider",
        "checkbox",
        "spinbutton",
        "link",
        "ComboBoxMenuSelect",
    )
    controls = [n for n in tree if n.get("role", {}).get("value") in roles]
    assert len(controls) > 15
    assert [n for n in controls if not n.get("name", {}).get("value")] == []


@needs_browser
def test_a_large_egraph_starts_at_one_module_and_says_what_it_leaves_out(window, deep, tmp_path):
    View(deep.searches.found).to_html(tmp_path / "deep.html")
    window.open(tmp_path / "deep.html")
    shown, everything = window.evaluate(OPEN_BOXES), len(egraph_data(deep.searches.found)["classes"])
    assert shown < everything
    assert window.evaluate("document.querySelector('#eg-module').value") == "head"
    assert f"Shown: {shown} of {everything} e-classes" in window.evaluate(STATUS)
    assert f"{everything - shown} e-classes are not open" in window.evaluate(STATUS)


@needs_browser
def test_a_click_opens_the_neighbours_and_a_key_does_too(window, deep, tmp_path):
    deep.view("head.fc").to_html(tmp_path / "deep.html")
    window.open(tmp_path / "deep.html")
    before = window.evaluate(OPEN_BOXES)
    leftmost = ("[...document.querySelectorAll('.eg-class')].sort((a, b) => a.querySelector('rect').x.baseVal.value"
                " - b.querySelector('rect').x.baseVal.value)[0].dataset.class")  # fmt: skip
    target = window.evaluate(leftmost)
    window.click(".eg-bar button[title='show everything that is drawn']")
    window.click(f"[data-class='{target}'] .eg-title")
    opened = window.evaluate(OPEN_BOXES)
    assert opened > before
    assert "float32" in window.evaluate("document.querySelector('.eg-detail').textContent")
    assert window.evaluate("document.activeElement.closest('.eg-class').dataset.class") == str(target)
    window.evaluate(f"document.querySelector(`[data-class='${{{leftmost}}}'] .eg-title`).focus()")
    window.press("Enter")
    assert window.evaluate(OPEN_BOXES) > opened


@needs_browser
def test_a_search_finds_what_is_not_open(window, deep, tmp_path):
    View(deep.searches.found).to_html(tmp_path / "deep.html")
    window.open(tmp_path / "deep.html")
    (number,) = deep.searches.found.classes_of("stem")
    there = f"!!document.querySelector('[data-class=\"{number}\"]')"
    assert not window.evaluate(there)
    window.click("#eg-search")
    window.type("conv2d")
    window.press("Enter")
    assert window.evaluate(there)
    assert window.evaluate("document.querySelector('.eg-class.focus').dataset.class") == str(number)
    window.evaluate("document.querySelector('#eg-search').value = ''")
    window.click("#eg-search")
    window.type("no such thing")
    window.press("Enter")
    assert "Nothing is called" in window.evaluate("document.querySelector('.eg-detail').textContent")


def change(selector, value, event="change"):
    return (f"(() => {{ const e = document.querySelector('{selector}'); e.value = {json.dumps(str(value))};"
            f" e.dispatchEvent(new Event('{event}')); }})()")  # fmt: skip


@needs_browser
def test_iterations_rules_and_modules_filter(window, report, tmp_path):
    View(report.searches.found).to_html(tmp_path / "head.html")
    window.open(tmp_path / "head.html")
    forms = "document.querySelectorAll('.eg-form').length"
    whole = window.evaluate(forms)
    window.evaluate(change("#eg-iteration", 0, "input"))
    original = [n for n in egraph_data(report.searches.found)["nodes"] if n[8] == 0]
    assert window.evaluate(forms) == len(original) < whole
    window.evaluate(change("#eg-iteration", len(egraph_data(report.searches.found)["phases"]), "input"))
    assert window.evaluate(forms) == whole
    data = egraph_data(report.searches.found)
    rule = data["rules"].index("adaptive-pool-is-mean")
    window.evaluate(change("#eg-rule", rule))
    assert window.evaluate(forms) == sum(rule in n[7] for n in data["nodes"])
    window.click(".eg-bar button:last-child")
    window.evaluate(change("#eg-module", "fc"))
    assert window.evaluate(OPEN_BOXES) == sum(c[4] == "fc" for c in data["classes"])


@needs_browser
def test_no_edge_runs_under_a_box(window, deep, tmp_path):
    """Points along every edge, against every box that it neither leaves nor enters."""
    View(deep.searches.found).to_html(tmp_path / "deep.html")
    window.open(tmp_path / "deep.html")
    window.evaluate(change("#eg-module", ""))
    hits = window.evaluate("""(() => {
      const boxes = [...document.querySelectorAll(".eg-class")].map(e =>
        [e.dataset.class, e.querySelector("rect").getBBox()]);
      const hits = new Set();
      for (const path of document.querySelectorAll(".eg-edge"))
        for (let at = 0, length = path.getTotalLength(); at <= length; at += 4) {
          const p = path.getPointAtLength(at);
          for (const [number, b] of boxes)
            if (number !== path.dataset.from && number !== path.dataset.to &&
                p.x > b.x + 1 && p.x < b.x + b.width - 1 && p.y > b.y + 1 && p.y < b.y + b.height - 1)
              hits.add(`${path.dataset.from} to ${path.dataset.to} under ${number}`);
        }
      return [document.querySelectorAll(".eg-edge").length, boxes.length, [...hits]]; })()""")
    assert hits[0] > 40
    assert hits[1] > 20
    assert hits[2] == []


@needs_browser
def test_it_prints_without_controls(window, page):
    window.open(page)
    window.send("Emulation.setEmulatedMedia", media="print")
    shown = window.evaluate(
        "[...document.querySelectorAll('nav, .eg-bar')].filter(e => e.checkVisibility()).length"
    )
    whole = window.evaluate(
        "[...document.querySelectorAll('.scroll.tall')].every(e => e.scrollHeight <= e.clientHeight + 1)"
    )
    window.send("Emulation.setEmulatedMedia", media="")
    assert shown == 0
    assert whole
