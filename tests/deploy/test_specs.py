"""Models and inputs by name."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import benchmarks._models  # noqa: F401  (makes torchvision importable)
from eqsat_deploy.errors import InputError, UnknownNameError
from eqsat_deploy.specs import draw_inputs, load_model, parse_input


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("transformers:vitt", UnknownNameError, "vit"),
        ("transformers:distilber", UnknownNameError, "distilbert"),
        ("transformers:./nowhere", InputError, "no folder"),
        ("transformers:a/b/c", InputError, "no folder"),
    ],
)
def test_a_misspelled_local_name_does_not_ask_the_network(
    spec: str, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")

    def connect(*_: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(error, match=words):
        load_model(spec)


def test_an_import_that_fails_within_transformers_says_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")

    def refuse(config: Any) -> None:
        raise ModuleNotFoundError("Could not import module") from RuntimeError("operator nms does not exist")

    monkeypatch.setattr(transformers.AutoModel, "from_config", refuse)
    with pytest.raises(InputError, match=r"transformers:vit .*import.*operator nms does not exist"):
        load_model("transformers:vit")


def test_weights_that_cannot_be_downloaded_may_be_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    timm = pytest.importorskip("timm")

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(InputError, match=r"timm:resnet10t: .*\(Name or service not known\); --weights FILE"):
        load_model("timm:resnet10t", pretrained=True)
    with pytest.raises(OSError, match="Name or"):
        load_model("timm:resnet10t")


def test_integer_inputs_are_drawn_once_the_model_is_known() -> None:
    model = nn.Sequential(nn.Embedding(40, 4), nn.Linear(4, 3))
    ids, _ = draw_inputs(model, (parse_input("2x9:int64"), parse_input("2x4")))
    assert ids.dtype == torch.int64
    (drawn,) = draw_inputs(model, (parse_input("2x9:int64"),))
    assert len(drawn.unique()) > 9
    assert int(drawn.max()) < 40


def test_an_exported_program_is_a_model(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    x = torch.randn(2, 4)
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(model, (x,)), path)
    program = load_model(str(path))
    torch.testing.assert_close(program.module()(x), model(x))
    with pytest.raises(InputError, match="has its weights in it"):
        load_model(str(path), weights="net.pt")
    path.write_bytes(b"PK torn")
    with pytest.raises(InputError, match=r"net\.pt2 is no program"):
        load_model(str(path))
    with pytest.raises(InputError, match="there is no file"):
        load_model(str(tmp_path / "none.pt2"))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_of_a_file(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    (tmp_path / "net.py").write_text("from torch import nn\ndef make(): return nn.Linear(4, 3)\n")
    state = nn.Linear(4, 3).state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    model = load_model(f"{tmp_path / 'net.py'}:make", weights=path)
    assert torch.equal(model.state_dict()["weight"], state["weight"])
    with pytest.raises(InputError, match="weights"):
        load_model(f"{tmp_path / 'net.py'}:make", weights=tmp_path / f"none{suffix}")
    other = {"weight": torch.zeros(5, 4), "bias": torch.zeros(3), "head.bias": torch.zeros(3)}
    save_file(other, path) if suffix == ".safetensors" else torch.save(other, path)
    with pytest.raises(InputError, match=r'"head\.bias".*; size mismatch for weight: .*\[5, 4\].*\[3, 4\]'):
        load_model(f"{tmp_path / 'net.py'}:make", weights=path)
    many = {f"{index}": torch.zeros(1) for index in range(99)} | {"weight": torch.zeros(5)}
    save_file(many, path) if suffix == ".safetensors" else torch.save(many, path)
    with pytest.raises(InputError, match="weights") as found:
        load_model(f"{tmp_path / 'net.py'}:make", weights=path)
    assert len(str(found.value)) < 1000
    path = path.with_suffix(".pt")
    torch.save(nn.Linear(4, 3), path)
    with pytest.raises(InputError, match=r"save model\.state_dict\(\)"):
        load_model(f"{tmp_path / 'net.py'}:make", weights=path)
