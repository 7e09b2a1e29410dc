"""Calibration data from files, in the order and dtypes of the inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import eqsat_deploy
from eqsat_deploy.calling import CallSpec, InputSpec
from eqsat_deploy.data import arrays, check_source, load_batches
from eqsat_deploy.deployment import call_of
from eqsat_deploy.errors import InputError

IMAGE = InputSpec("x", (None, 3, 4, 6), torch.float32)
TOKENS = InputSpec("ids", (None, 5), torch.int64)


def call(*inputs: InputSpec) -> CallSpec:
    return CallSpec.plain(inputs, 0)


def test_array_in_batches(tmp_path: Path) -> None:
    values = np.arange(5 * 72, dtype=np.float64).reshape(5, 3, 4, 6)
    np.save(tmp_path / "x.npy", values)
    batches = load_batches(str(tmp_path / "x.npy"), call(IMAGE), batch=2)
    assert [len(x) for (x,) in batches] == [2, 2, 1]
    joined = torch.cat([x for (x,) in batches])
    assert joined.dtype == torch.float32
    assert torch.equal(joined, torch.as_tensor(values, dtype=torch.float32))


def test_arrays_by_name_leave_labels_out(tmp_path: Path) -> None:
    x, ids, labels = torch.randn(3, 3, 4, 6), torch.randint(9, (3, 5)), torch.zeros(3)
    torch.save({"labels": labels, "ids": ids, "x": x}, tmp_path / "data.pt")
    ((first, second),) = load_batches(str(tmp_path / "data.pt"), call(IMAGE, TOKENS))
    assert torch.equal(first, x)
    assert torch.equal(second, ids)


def test_limit(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((9, 3, 4, 6), dtype=np.float32))
    assert sum(len(x) for (x,) in load_batches(str(tmp_path / "x.npy"), call(IMAGE), limit=7)) == 7


def test_random_is_labelled() -> None:
    with pytest.warns(UserWarning, match="random data"):
        ((x, ids),) = load_batches("random:6", call(IMAGE, TOKENS))
    assert x.shape == (6, 3, 4, 6)
    assert ids.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("x.npy", lambda p: np.save(p, np.zeros((0, 3, 4, 6))), "at least one"),
        ("x.npz", lambda p: np.savez(p, a=np.zeros((1, 2)), b=np.zeros((1, 2))), "do not name the inputs"),
        ("x.npy", lambda p: p.write_bytes(b"not an array"), "cannot be read"),
        ("x.npz", lambda p: p.write_bytes(b"PK\x03\x04 torn"), "cannot be read"),
        ("x.pt", lambda p: torch.save(3, p), "axis 0"),
        ("x.png", lambda p: p.mkdir(), "no images"),
    ],
)
def test_unusable_data(tmp_path: Path, name: str, write: object, says: str) -> None:
    write(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(InputError, match=says):
        load_batches(str(tmp_path / name), call(IMAGE))


def test_unknown_form(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    with pytest.raises(InputError, match=r"\.npz"):
        load_batches(str(tmp_path / "x.csv"), call(IMAGE))
    (tmp_path / "folder").mkdir()
    for name, words in (("texts.txt", r"\.npz.*not '\.txt'"), ("folder", "not a folder")):
        with pytest.raises(InputError, match=words):
            arrays.read(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "error"),
    [("random:x", InputError), ("random:", InputError), ("nowhere.npy", InputError), ("x.csv", InputError),
     ("broken.npz", InputError), ("empty", InputError)],
)  # fmt: skip
def test_mistakes_are_seen_before_there_is_a_module(
    tmp_path: Path, source: str, error: type[Exception]
) -> None:
    (tmp_path / "x.csv").write_text("1,2")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    (tmp_path / "empty").mkdir()
    with pytest.raises(error):
        check_source(source if source.startswith("random") else str(tmp_path / source))


def test_good_sources_pass(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 5)))
    check_source(str(tmp_path / "x.npy"))
    check_source("random:3")


def test_random_tokens_are_those_of_the_vocabulary() -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    module = eqsat_deploy.optimize(
        nn.Sequential(nn.Embedding(40, 4), nn.Linear(4, 3)).eval(), ids, cost="flops"
    )
    with pytest.warns(UserWarning, match="random data"):
        batches = load_batches("random:12", call_of(module), module=module)
    drawn = torch.cat([x for (x,) in batches])
    assert len(drawn.unique()) > 10
    assert int(drawn.max()) < 40
