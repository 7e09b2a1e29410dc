"""Every notebook runs from top to bottom, and is committed with its outputs."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
ABSOLUTE = re.compile(r"(?<![\w./:+<])/[A-Za-z][\w.-]*/")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code"]


def kinds(cell):
    """Of a cell's outputs in turn; what is printed comes in as many parts as the time it takes makes of it."""
    return [kind for kind, _ in groupby(o.output_type for o in cell.outputs if o.get("name") != "stderr")]


def test_there_are_notebooks():
    assert [p.stem.partition("-")[2] for p in NOTEBOOKS] == [
        "quickstart", "inside-an-e-class", "attention-comes-apart", "does-the-order-matter", "choosing-precision",
        "proving-it-optimal", "your-own-rule",
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_as_it_ran(path):
    cells = code_cells(read(path))
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c.outputs]
    assert outputs
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_names_no_path_of_a_machine(path):
    text = path.read_text(encoding="utf-8")
    assert not ABSOLUTE.findall(text)
    assert not [word for word in ("/home/", "/root/", "/tmp/", "/Users/") if word in text]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(path, monkeypatch):
    source = [str(ROOT), str(ROOT / "rewrites"), str(ROOT / "extraction")]
    monkeypatch.setenv("PYTHONPATH", ":".join(source))
    notebook = read(path)
    committed = [kinds(c) for c in code_cells(notebook)]
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3",
                                     resources={"metadata": {"path": str(path.parent)}})  # fmt: skip
    client.execute()
    assert [kinds(c) for c in code_cells(notebook)] == committed
