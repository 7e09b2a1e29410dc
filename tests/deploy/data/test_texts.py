"""Texts through a tokenizer in a local folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import benchmarks._models  # noqa: F401  (makes torchvision importable)
from eqsat_deploy.calling import CallSpec, InputSpec
from eqsat_deploy.data import Reading, check_source, example_batch, load_batches
from eqsat_deploy.errors import InputError

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["the", "cat", "sat", "on", "a", "mat"]


class Encoder(nn.Module):
    """Called as transformers' models are; `token_type_ids`, which the tokenizer gives too, it does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.table(input_ids) * attention_mask.unsqueeze(-1)).sum(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("tokenizer")
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask", "token_type_ids"],
    ).save_pretrained(path)
    return path


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("the cat\n\nthe cat sat on a mat\na dog\n")
    return path


def call(length: int) -> CallSpec:
    specs = [InputSpec(name, (None, length), torch.int64) for name in ("attention_mask", "input_ids")]
    return CallSpec.plain(specs, 0)


def test_texts_are_padded_and_cut_to_what_the_module_takes(folder: Path, lines: Path) -> None:
    reading = Reading(tokenizer=folder)
    check_source(str(lines), reading)
    ((mask, ids),) = load_batches(str(lines), call(4), reading=reading)
    assert ids.tolist() == [[2, 3, 0, 0], [2, 3, 4, 5], [6, 1, 0, 0]]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]
    assert len(list(load_batches(str(lines), call(4), reading=reading, batch=2))) == 2


def test_example_inputs_are_as_long_as_the_longest_text_or_as_told(folder: Path, lines: Path) -> None:
    model = Encoder()
    given = example_batch(str(lines), model, Reading(tokenizer=folder))
    assert {name: tuple(value.shape) for name, value in given.items()} == {
        "input_ids": (3, 6),
        "attention_mask": (3, 6),
    }
    lines.write_text("a mat\n" * 9 + "the cat sat on\n")  # the longest is none of the examples
    given = example_batch(str(lines), model, Reading(tokenizer=folder))
    assert given["input_ids"].shape == (4, 4)
    given = example_batch(str(lines), model, Reading(tokenizer=folder, length=9))
    assert given["input_ids"].shape == (4, 9)


def test_what_is_missing_is_said(folder: Path, lines: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--tokenizer"):
        check_source(str(lines))
    with pytest.raises(InputError, match="no such folder"):
        check_source(str(lines), Reading(tokenizer=tmp_path / "nowhere"))
    with pytest.raises(InputError, match="cannot be loaded"):
        check_source(str(lines), Reading(tokenizer=tmp_path))
    images = CallSpec.plain([InputSpec("x", (None, 3, 8, 8), torch.float32)], 0)
    with pytest.raises(InputError, match="the model takes x"):
        load_batches(str(lines), images, reading=Reading(tokenizer=folder))
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match="has no text"):
        load_batches(str(tmp_path / "empty.txt"), call(4), reading=Reading(tokenizer=folder))


def test_a_line_that_is_no_text_is_named_or_left_out(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "torn.txt"
    path.write_bytes(b"the cat\n\xff\xfe\na mat\n")
    with pytest.raises(InputError, match=r"torn\.txt: line 2 cannot be read.*--skip-bad"):
        load_batches(str(path), call(2), reading=Reading(tokenizer=folder))
    with pytest.warns(UserWarning, match="1 left out"):
        ((_, ids),) = load_batches(str(path), call(2), reading=Reading(tokenizer=folder, skip_bad=True))
    assert ids.tolist() == [[2, 3], [6, 7]]
