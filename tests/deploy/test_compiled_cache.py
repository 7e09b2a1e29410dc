"""What is kept of compiled models, and that nothing old, damaged or half-written is read."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from eqsat_deploy import cache, compiled_cache


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "kept"))
    return tmp_path / "kept" / "compiled"


def test_what_is_written_is_read(where: Path) -> None:
    assert compiled_cache.read("one") is None
    compiled_cache.write("one", b"compiled")
    assert compiled_cache.read("one") == b"compiled"
    assert compiled_cache.read("two") is None
    assert [file.name for file in where.iterdir()] == ["one.blob"]
    assert where.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", [b"", b"short", b"x" * 100])
def test_what_is_damaged_is_not(where: Path, damage: bytes) -> None:
    compiled_cache.write("one", b"compiled")
    whole = (where / "one.blob").read_bytes()
    for content in (damage, whole[:-1], whole + b"!", bytes([whole[0] ^ 1]) + whole[1:]):
        (where / "one.blob").write_bytes(content)
        assert compiled_cache.read("one") is None
    compiled_cache.write("one", b"again")
    assert compiled_cache.read("one") == b"again"


def test_any_fact_and_the_machine_name_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"model": "abc", "size": 1, "properties": {"threads": 2}}
    one = compiled_cache.key(**facts)
    assert one == compiled_cache.key(**dict(reversed(facts.items())))
    others = [{"model": "abd"}, {"size": -1}, {"properties": {"threads": 1}}, {"more": None}]
    names = {compiled_cache.key(**(facts | other)) for other in others}
    monkeypatch.setattr(compiled_cache, "_machine", lambda: {"flags": "another"})
    assert len({one, compiled_cache.key(**facts), *names}) == 2 + len(others)


def test_what_was_used_longest_ago_makes_room(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_cache, "MOST", 300)
    for number, name in enumerate(("one", "two", "three")):
        compiled_cache.write(name, bytes(60))
        os.utime(where / f"{name}.blob", (number, number))
    assert compiled_cache.read("one") is not None  # used now
    compiled_cache.write("four", bytes(60))
    assert {file.stem for file in where.iterdir()} == {"one", "three", "four"}


def test_many_may_write_and_read_at_once(where: Path) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]

    def use(content: bytes) -> bool:
        compiled_cache.write("one", content)
        return compiled_cache.read("one") in contents

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, contents * 5))
    assert [file.name for file in where.iterdir()] == ["one.blob"]


def test_where_nothing_can_be_kept_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for value in (str(tmp_path / "file"), ""):
        monkeypatch.setenv(cache.VARIABLE, value)
        compiled_cache.write("one", b"compiled")
        assert compiled_cache.read("one") is None
    monkeypatch.delenv(cache.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compiled_cache.folder() == tmp_path / "eqsat-deploy" / "compiled"
