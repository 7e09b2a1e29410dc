"""The documentation: its programs run, its commands are ones that there are, and its catalogues miss nothing."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

import benchmarks._models  # noqa: F401  (makes torchvision importable)
from demo.data import digits
from demo.models import ConvNet
from demo.training import train
from tests.support.pages import blocks, check_command, commands, run

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
# A program needs what is not everywhere: a GPU.
ELSEWHERE = {"tensorrt.md"}
GUIDES = [page for page in PAGES if page.parent.name in ("tutorial", "how-to", "explanation")]
RUN = [
    p
    for p in GUIDES
    if p.name not in ELSEWHERE and any(kind == "python" for kind, _ in blocks(p.read_text()))
]


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    data, model = digits(), ConvNet()
    train(model, data, epochs=3)
    return model, data


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", RUN, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_the_programs_of_a_page_run(page, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, data = network
    known = {"__name__": "page", "model": model, "images": data.train_images, "labels": data.train_labels}
    assert run(page.name, page.read_text(), known)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_the_commands_of_a_page_are_ones_that_there_are(page):
    for line in commands(page.read_text()):
        check_command(line)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda page: f"{page.parent.name}/{page.stem}"
)
def test_links_lead_to_what_is_there(page):
    prose = re.sub(r"```.*?```|`[^`]*`|^    .*?$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = {target for target in re.findall(r"\]\(([^)#\s]+)", prose) if "://" not in target}
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_readme_leads_to_why_the_head_became_a_convolution_and_there_it_is_seen():
    (page,) = set(re.findall(r"\]\((docs/explanation/resnet-head\.md)\)", (ROOT / "README.md").read_text()))
    pictures = set(re.findall(r"\]\((\S+?\.svg)\)", (ROOT / page).read_text()))
    assert len(pictures) == 3
    for picture in pictures:
        assert "<path" in ((ROOT / page).parent / picture).read_text()


@pytest.fixture(scope="module")
def catalogues():
    pytest.importorskip("sphinx")
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import catalogues

        return catalogues
    finally:
        sys.path.remove(str(ROOT / "docs"))


def test_the_catalogue_of_rules_has_every_rule_with_both_sides(catalogues):
    from eqsat_deploy.rules import Rule
    from eqsat_deploy.selection import registered_rules

    entries = dict(entry.split("\n", 1) for entry in "\n".join(catalogues.rules()).split("### ")[1:])
    assert list(entries) == [rule.name for rule in registered_rules()]
    for rule in registered_rules():
        assert rule.doc in entries[rule.name]
        assert ("=> " in entries[rule.name]) == isinstance(rule, Rule)
    head = entries["flatten-linear-as-convolution"]
    assert "linear(reshape(x, (n, c * h * w)), weight, b)" in head
    assert (
        "=> reshape(conv2d(x, reshape(weight, (o, c, h, w)), b, (1, 1), (0, 0), (1, 1), 1), (n, o))" in head
    )
    assert "`x` `(n, c, h, w)`" in head
    assert "torchvision:resnet18" in head
    assert "where a is constant" not in head
    assert "where t is constant" in entries["subtracted-constant-is-added"]
    assert "torchvision" not in entries["kernel-anchors"]
    assert "moves the scales that calibration chooses" in entries["scale-after-relu"]
    assert "moves the scales" not in head


def test_other_catalogues_have_everything_that_is_registered(catalogues):
    from eqsat_deploy.cli.parser import parsers
    from eqsat_deploy.language import OPERATORS
    from eqsat_deploy.targets import TARGETS
    from eqsat_extraction.cost_models import cost_models
    from eqsat_extraction.extractor import EXTRACTORS

    for make, names in (
        (catalogues.operators, [f"`{name}(" for name in OPERATORS]),
        (catalogues.targets, [f"| `{name}` |" for name in TARGETS.entries()]),
        (catalogues.costs, [f"| `{name}` |" for name in cost_models()]),
        (catalogues.extractors, [f"| `{name}` |" for name in EXTRACTORS.entries()]),
        (catalogues.commands, [f"## {name}\n" for name in parsers()[1]]),
    ):
        text = "\n".join(make())
        assert names
        assert [name for name in names if name not in text] == []
