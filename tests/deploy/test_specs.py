"""Models and inputs by name."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
from torch import nn

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


def test_integer_inputs_are_drawn_once_the_model_is_known() -> None:
    model = nn.Sequential(nn.Embedding(40, 4), nn.Linear(4, 3))
    ids, _ = draw_inputs(model, (parse_input("2x9:int64"), parse_input("2x4")))
    assert ids.dtype == torch.int64
    (drawn,) = draw_inputs(model, (parse_input("2x9:int64"),))
    assert len(drawn.unique()) > 9
    assert int(drawn.max()) < 40
