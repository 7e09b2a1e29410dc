"""Hashes of files and of bytes, in threads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from eqsat_deploy import hashing


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "CHUNK", 8)
    monkeypatch.setattr(hashing, "PIECE", 8)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 100])
def test_it_is_the_hash_of_the_whole_file(tmp_path: Path, size: int) -> None:
    content = bytes(range(size))
    file = tmp_path / "file"
    file.write_bytes(content)
    assert hashing.sha256(file) == hashlib.sha256(content).hexdigest()
    with hashing.hashing([file, file]) as found:
        assert [each.result() for each in found] == 2 * [hashlib.sha256(content).hexdigest()]


def test_what_cannot_be_read_is_said_when_it_is_asked_for(tmp_path: Path) -> None:
    with hashing.hashing([tmp_path / "none"]) as (found,), pytest.raises(FileNotFoundError, match="none"):
        found.result()


def test_files_taken_as_they_are_have_the_hashes_of_their_contents(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    for name, content in (("b", b"12"), ("inside/a", b"3")):
        (tmp_path / name).write_bytes(content)
    files = hashing.CheckedFiles.of(tmp_path)
    assert files.folder() == tmp_path
    assert files.hashes == {
        name: hashlib.sha256(c).hexdigest() for name, c in (("b", b"12"), ("inside/a", b"3"))
    }


@pytest.mark.parametrize("size", [1, 8, 9, 20])
def test_every_byte_and_the_length_count(size: int) -> None:
    content = bytes(size)
    changed = [content[:place] + b"x" + content[place + 1 :] for place in range(size)]
    found = {
        hashing.of_bytes(memoryview(each)) for each in (content, content[:-1], content + b"\0", *changed)
    }
    assert len(found) == 3 + size
