"""Functions as sources, labels, and what a file gives as example inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import eqsat_deploy
from eqsat_deploy.calling import CallSpec, InputSpec
from eqsat_deploy.data import check_source, example_batch, load_batches
from eqsat_deploy.errors import InputError, UnknownNameError

DATA = """
import torch
from torch.utils.data import DataLoader, TensorDataset

x, labels = torch.randn(10, 3), torch.arange(10)
loader = DataLoader(TensorDataset(x, labels), batch_size=4)

def pairs():
    return loader

def named():
    yield {"x": x[:4], "labels": labels[:4]}

def broken():
    yield x
    raise RuntimeError("the disk is gone")

def alone():
    return x

def empty():
    return []
"""
CALL = CallSpec.plain([InputSpec("x", (None, 3), torch.float32)], 0)


class Masked(nn.Module):
    """Its second argument is a mask, which labels must not become."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        found = self.layer(x)
        return found if mask is None else found * mask.unsqueeze(-1)


class Both(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(x) + y


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "data.py").write_text(DATA)
    return tmp_path / "data.py"


def test_a_function_gives_its_batches_up_to_the_limit(source: Path) -> None:
    check_source(f"{source}:pairs")
    for name in ("pairs", "loader"):
        found = list(load_batches(f"{source}:{name}", CALL, limit=6))
        assert [len(x) for x, _ in found] == [4, 4]
    optimized = eqsat_deploy.optimize(nn.Linear(3, 2), torch.zeros(2, 3), cost="flops")
    with pytest.warns(UserWarning, match="10 samples are few"):
        optimized.quantize(load_batches(f"{source}:pairs", CALL))


def test_labels_are_no_example_inputs(source: Path) -> None:
    model = Masked()
    for name in ("pairs", "loader"):
        (x,) = example_batch(f"{source}:{name}", model)
        assert x.shape == (4, 3)
    assert set(example_batch(f"{source}:named", model)) == {"x"}


def test_two_inputs_are_both_taken(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text("import torch\npairs = [(torch.ones(2, 3), torch.ones(2, 3))]\n")
    assert len(example_batch(f"{tmp_path / 'two.py'}:pairs", Both())) == 2


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("broken", r"the disk is gone \(.*data\.py:\d+\)"),
        ("alone", "an iterable of batches is expected, not Tensor"),
    ],
)
def test_what_fails_in_a_function_is_said(source: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        list(load_batches(f"{source}:{name}", CALL))


def test_a_function_that_is_not_there_is_seen_at_once(source: Path) -> None:
    with pytest.raises(UnknownNameError, match="'pairs'"):
        check_source(f"{source}:pair")
    with pytest.raises(InputError, match="no data at 'nowhere'"):
        check_source("nowhere")
    with pytest.raises(InputError, match="--input"):
        check_source("random:3", random=False)
    with pytest.raises(InputError, match="gives no batches"):
        example_batch(f"{source}:empty", Masked())


def files(folder: Path) -> Iterator[tuple[Path, set[str] | int]]:
    x, y = np.random.default_rng(0).normal(size=(2, 9, 3))
    np.save(folder / "x.npy", x)
    yield folder / "x.npy", 1
    np.savez(folder / "named.npz", x=x, labels=np.arange(9), other=y)
    yield folder / "named.npz", {"x"}
    np.savez(folder / "unnamed.npz", images=x, labels=np.arange(9))
    yield folder / "unnamed.npz", 1
    torch.save((torch.from_numpy(x), torch.arange(9)), folder / "pair.pt")
    yield folder / "pair.pt", 1


def test_arrays_are_example_inputs_in_the_models_dtype(tmp_path: Path) -> None:
    for path, expected in files(tmp_path):
        given = example_batch(str(path), Masked())
        assert (set(given) if isinstance(given, dict) else len(given)) == expected, path
        (x,) = given.values() if isinstance(given, dict) else given
        assert (x.dtype, len(x)) == (torch.float32, 4)
