"""Hashes of files and of bytes, in threads."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
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


def test_what_is_remembered_is_not_read_again_until_the_block_ends(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for file in (one, other):
        file.write_bytes(b"content")
    known: Future[str] = Future()
    known.set_result("known")
    with hashing.remembered({one: known}), hashing.hashing([one, other]) as found:
        assert [each.result() for each in found] == ["known", hashlib.sha256(b"content").hexdigest()]
    with hashing.hashing([one]) as (found,):
        assert found.result() == hashlib.sha256(b"content").hexdigest()


@pytest.mark.parametrize("size", [1, 8, 9, 20])
def test_every_byte_and_the_length_count(size: int) -> None:
    content = bytes(size)
    changed = [content[:place] + b"x" + content[place + 1 :] for place in range(size)]
    found = {
        hashing.of_bytes(memoryview(each)) for each in (content, content[:-1], content + b"\0", *changed)
    }
    assert len(found) == 3 + size
