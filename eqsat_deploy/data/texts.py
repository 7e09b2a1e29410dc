"""Lines of text as a Hugging Face tokenizer's output: `input_ids`, `attention_mask`, by name."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from eqsat_deploy.data.reading import Reading, read_each
from eqsat_deploy.errors import InputError

MEASURED = 512
"""Texts that are read at least, of which the longest says how long all are padded to be."""


def load_tokenizer(reading: Reading) -> Any:
    """The tokenizer in a local folder; nothing is downloaded.

    Raises:
        InputError: none is given, there is none, or transformers is not installed.
    """
    folder = reading.tokenizer
    if folder is None:
        raise InputError("texts need the model's tokenizer: tokenizer= (--tokenizer FOLDER)")
    if not folder.is_dir():
        raise InputError(
            f"tokenizer {folder}: there is no such folder; tokenizer.save_pretrained(...) writes one"
        )
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise InputError("reading texts needs transformers: pip install transformers") from error
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # OSError, ValueError, and what the tokenizers of Rust raise
        raise InputError(f"tokenizer {folder} cannot be loaded: {error}") from error
    if tokenizer.pad_token is None:  # as of models that generate: what is padded is masked, whatever it is
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_texts(
    file: Path, names: Collection[str], length: int | None, reading: Reading, limit: int
) -> dict[str, Tensor]:
    """The tokens of at most `limit` lines, empty ones left out: a tensor (n, length) of each of `names` that there is.

    Raises:
        InputError: the file cannot be read, has no text, or the tokenizer gives nothing of these names.
    """
    tokenizer = load_tokenizer(reading)
    try:
        numbered = list(enumerate(file.read_bytes().splitlines(), 1))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    lines = read_each(
        [line for line in numbered if line[1].strip()],
        lambda line: line[1].decode(), lambda line: f"{file}: line {line[0]}", reading.skip_bad,
        max(limit, MEASURED),
    )  # fmt: skip
    if not lines:
        raise InputError(f"{file} has no text: a sample on a line is expected")
    length = length or reading.length
    if length is None:
        longest = max(len(ids) for ids in tokenizer(lines)["input_ids"])
        length = min(longest, tokenizer.model_max_length)
    found = tokenizer(
        lines[:limit], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    kept = {name: value for name, value in found.items() if name in names}
    if not kept:
        raise InputError(f"the tokenizer gives {', '.join(found)}, the model takes {', '.join(names)}")
    return kept
