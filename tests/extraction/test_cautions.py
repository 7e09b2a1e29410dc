"""Warnings name the caller's line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eqsat_extraction import GymFormatWarning, load_json
from eqsat_extraction.cautions import caution


def ours(
    depth: int, through: Callable[[Callable[[], None]], None] = lambda call: call()
) -> Callable[[], None]:
    """What warns under `depth` functions of a package of ours, which are called `through` something else."""
    call: Callable[[], None] = lambda: caution("careful", GymFormatWarning)  # noqa: E731
    for _ in range(depth):
        known = {"__name__": "eqsat_package.module", "inner": call, "through": through}
        exec("def call():\n    through(inner)", known)
        call = known["call"]
    return call


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_it_is_the_line_that_called_the_outermost_of_our_functions(depth: int) -> None:
    call = ours(depth)
    with pytest.warns(GymFormatWarning, match="careful") as caught:
        call()
    (warning,) = caught
    assert warning.filename == __file__
    assert Path(__file__).read_text().splitlines()[warning.lineno - 1] == "        call()"


def test_arguments_that_are_checked_on_the_way_change_nothing(tmp_path: Path) -> None:
    file = tmp_path / "egraph.json"
    node = {"op": "a", "children": [], "eclass": "0", "cost": 1}
    nodes = {"a": {**node, "children": ["none"]}, "b": node}
    file.write_text(json.dumps({"nodes": nodes, "root_eclasses": ["0"]}))
    with pytest.warns(GymFormatWarning, match="not in the file") as caught:
        load_json(file)
    assert [warning.filename for warning in caught] == [__file__]
