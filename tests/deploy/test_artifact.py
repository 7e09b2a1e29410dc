from __future__ import annotations

import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fuzz_artifacts import fuzzed, read
from eqsat_deploy import load
from eqsat_deploy.engines import Batch, Signature
from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.errors import ArtifactError, EngineError
from eqsat_deploy.quantization import quantize
from tests.deploy.placing import Residual, images, int8, traced
from tests.support.engines import Double, Fake


@pytest.fixture
def engine() -> Fake:
    engine = Fake.build(traced(Double(), torch.zeros(1, 3)), batch=Batch(1, 2, 8))
    engine.report = {"gap": 0.0, "rules": ["fold"]}
    return engine


@pytest.fixture
def saved(engine: Fake, tmp_path: Path) -> Path:
    path = tmp_path / "model.eqsat"
    engine.save(path, weights=True)
    return path


def test_what_is_saved_loads(engine: Fake, saved: Path) -> None:
    loaded = load(saved, Fake)
    assert loaded.signature == engine.signature
    assert loaded.report == engine.report
    assert loaded.weights.keys() == engine.weights.keys()
    assert all(torch.equal(loaded.weights[name], value) for name, value in engine.weights.items())
    x = torch.randn(4, 3)
    (result,) = loaded(x)
    assert torch.equal(result, 2 * x)


def test_weights_are_saved_however_they_lie_in_memory(engine: Fake, tmp_path: Path) -> None:
    table = torch.arange(6.0).reshape(2, 3)
    engine.weights = {
        "table": table.t(),
        "tied": table.t(),
        "spread": table.expand(4, 2, 3),
        "part": table[:, 1:],
    }
    engine.save(tmp_path / "model.eqsat", weights=True)
    loaded = load(tmp_path / "model.eqsat", Fake)
    assert all(torch.equal(loaded.weights[name], value) for name, value in engine.weights.items())


def test_weights_are_left_out_unless_they_are_asked_for(engine: Fake, tmp_path: Path) -> None:
    path = tmp_path / "model.eqsat"
    engine.save(path)
    assert set(json.loads((path / "manifest.json").read_text())["files"]) == {"engine/program/code.txt"}
    loaded, x = load(path, Fake), torch.randn(4, 3)
    assert torch.equal(loaded(x)[0], 2 * x)
    assert loaded.weights == {}
    loaded.save(path)
    with pytest.raises(ArtifactError, match=r"weights=True: there are none .*model\.eqsat"):
        loaded.save(path, weights=True)
    assert torch.equal(load(path, Fake)(x)[0], 2 * x)


def test_it_is_a_plain_directory_beside_nothing_else(saved: Path) -> None:
    names = sorted(file.relative_to(saved).as_posix() for file in saved.rglob("*") if file.is_file())
    assert names == [
        "engine/program/code.txt",
        "manifest.json",
        "manifest.json.sha256",
        "weights.safetensors",
    ]
    assert [entry.name for entry in saved.parent.iterdir()] == ["model.eqsat"]
    manifest = json.loads((saved / "manifest.json").read_text())
    assert set(manifest["files"]) == set(names) - {"manifest.json", "manifest.json.sha256"}
    assert manifest["versions"]["engine"] == "runtime 1"


def test_saving_twice_gives_the_same_bytes_and_replaces(engine: Fake, saved: Path) -> None:
    before = {file: file.read_bytes() for file in saved.rglob("*") if file.is_file()}
    (saved / "stale.txt").write_text("left over")
    engine.save(saved, weights=True)
    assert {file: file.read_bytes() for file in saved.rglob("*") if file.is_file()} == before
    assert [entry.name for entry in saved.parent.iterdir()] == ["model.eqsat"]


def test_a_loaded_engine_saves_over_itself(saved: Path) -> None:
    before = (saved / "manifest.json").read_bytes()
    load(saved, Fake).save(saved, weights=True)
    assert (saved / "manifest.json").read_bytes() == before


def flip(path: Path) -> None:
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "weights.safetensors").write_bytes(bytes(data))


def seal(path: Path, text: str) -> None:
    """A manifest with the hash that goes with it."""
    (path / "manifest.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json.sha256").write_text(f"{digest}  manifest.json\n")


def sealed(text: str) -> Callable[[Path], None]:
    return lambda path: seal(path, text)


def edit(*keys: str | int, to: Any) -> Callable[[Path], None]:
    """One value of the manifest replaced, `...` removes it; a string of JSON where `to` is bytes."""

    def apply(path: Path) -> None:
        inner = manifest = json.loads((path / "manifest.json").read_text())
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = "HERE" if isinstance(to, bytes) else to
        if to is ...:
            del inner[keys[-1]]
        text = json.dumps(manifest)
        seal(path, text.replace('"HERE"', to.decode()) if isinstance(to, bytes) else text)

    return apply


def linked(name: str) -> Callable[[Path], None]:
    """`name` moved out of the artifact, a link left in its place."""

    def apply(path: Path) -> None:
        (path / name).rename(path.parent / "moved")
        (path / name).symlink_to(path.parent / "moved")

    return apply


def piped(path: Path) -> None:
    (path / "weights.safetensors").unlink()
    os.mkfifo(path / "weights.safetensors")


INPUT = ("signature", "call", "arguments", 0, "leaves", 0)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip, r"weights.safetensors is not what was saved .SHA-256"),
        (lambda path: (path / "engine/program/code.txt").unlink(), r"code.txt is missing"),
        (lambda path: (path / "manifest.json").unlink(), r"is not an artifact: .*manifest.json"),
        (lambda path: (path / "manifest.json.sha256").unlink(), r"has no manifest.json.sha256"),
        (lambda path: (path / "manifest.json").write_bytes(b"{"), r"manifest.json is damaged"),
        (lambda path: (path / "manifest.json").open("a").write(" "), r"damaged .it is not what"),
        (lambda path: (path / "engine/more.bin").write_text("x"), r"more.bin is a link or not listed"),
        (linked("weights.safetensors"), r"weights.safetensors is a link"),
        (linked("manifest.json"), r"manifest.json is a link"),
        (linked("engine"), r"engine is a link"),
        (piped, r"weights.safetensors is a link or no file"),
        (sealed("{"), r"manifest.json is damaged"),
        (sealed("[]"), r"has format None"),
        (sealed("[" * 100_000), r"damaged .*recursion"),
        (sealed('{"format": 3, "format": 3}'), r"the key 'format' is there twice"),
        (sealed('{"format": NaN}'), r"NaN is no JSON"),
        (sealed('{"format": ' + "9" * 5000 + "}"), r"damaged .*digits"),
        (edit("report", to=b"[" * 300 + b"]" * 300), r"nested 30. deep"),
        (edit("format", to=99), r"has format 99, this version reads 3"),
        (edit("format", to="3" * 99), r"has format '3{30}"),
        (
            edit("device", to="machine B"),
            r"saved machine B, here machine A.*again on this machine with `eqd.opt",
        ),
        (edit("files", "../outside", to={"bytes": 0, "sha256": "0" * 64}), r"files: '../outside' is neither"),
        (
            edit("files", "engine/../x", to={"bytes": 0, "sha256": "0" * 64}),
            r"files: 'engine/../x' is neither",
        ),
        (
            edit("files", "/etc/passwd", to={"bytes": 0, "sha256": "0" * 64}),
            r"files: '/etc/passwd' is neither",
        ),
        (edit("files", to={}), r"is a link or not listed"),
        (edit("files", "weights.safetensors", "bytes", to=2**60), r"int` <= .*\$.files\[...\].bytes"),
        (edit("files", "weights.safetensors", "bytes", to=10**30), r"\$.files\[...\].bytes"),
        (edit("files", "weights.safetensors", "bytes", to=9), r"not what was saved .\d+ bytes, not 9"),
        (edit("files", "weights.safetensors", "sha256", to="0"), r"\$.files\[...\].sha256"),
        (edit("engine", to=...), r"missing required field `engine`"),
        (edit("engine", to="../x"), r"\$.engine"),
        (edit("more", to=1), r"unknown field `more`"),
        (edit("versions", "torch", to=None), r"got `null` - at `\$.versions.torch`"),
        (edit("report", to=[]), r"\$.report"),
        (edit("report", to={"engine": 5}), r"report.engine"),
        (edit("report", to={"engine": {"layers": [{}]}}), r"report.engine: .*layers\[0\]"),
        (edit("options", to=None), r"\$.options"),
        (edit("signature", to={}), r"missing required field `call` - at `\$.signature`"),
        (edit(*INPUT, "dtype", to="save"), r"'save' is no dtype of torch - at `\$.signature.*leaves\[0\]"),
        (edit(*INPUT, "shape", to=[None, -1]), r"shape\[1\]"),
        (edit(*INPUT, "shape", to=[None, 2.5]), r"shape\[1\]"),
        (edit(*INPUT, "shape", to=[2**31 - 1] * 3), r"inputs of more than 1 TiB"),
        (edit(*INPUT, "value", to=1), r"needs a shape and a dtype, or a value"),
        (edit("signature", "call", "arguments", 0, "name", to="z"), r"arguments \['z'\] for the parameters"),
        (edit("signature", "call", "arguments", 0, "structure", to={"tuple": []}), r"1 leaves for .* of 0"),
        (
            edit("signature", "call", "parameters", 0, "name", to="not a name"),
            r"parameter - at `\$.signature.call",
        ),
        (edit("signature", "call", "parameters", 0, "name", to=""), r"'' is no name of a parameter"),
        (edit("signature", "outputs", to=[7]), r"outputs are numbered from 0"),
        (edit("signature", "outputs", to=[{"name": "a", "value": {"dtype": "load"}}]), r"'load' is no dtype"),
        (edit("signature", "narrow", to=["save"]), r"'save' is no dtype"),
        (edit("signature", "batch", "typical", to=True), r"\$.signature.batch.typical"),
        (edit("signature", "batch", "typical", to=99), r"minimum <= typical <= maximum"),
    ],
)
def test_what_changed_since_is_an_error(saved: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(saved)
    with pytest.raises(ArtifactError, match=message) as raised:
        load(saved, Fake)
    assert str(saved) in str(raised.value)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sha256", "weights.safetensors"])
def test_every_byte_counts(saved: Path, name: str) -> None:
    intact = (saved / name).read_bytes()
    for place in range(0, len(intact), max(1, len(intact) // 100)):
        (saved / name).write_bytes(intact[:place] + bytes([intact[place] ^ 1]) + intact[place + 1 :])
        with pytest.raises(ArtifactError):
            load(saved, Fake)
    (saved / name).write_bytes(intact)
    load(saved, Fake)


def test_damage_and_forgeries_are_refused_or_read(saved: Path, tmp_path: Path) -> None:
    found = Counter(read(*fuzzed([saved], tmp_path / "fuzzed", seed)[:2], seed) for seed in range(400))
    assert set(found) == {"read", "refused"}
    assert found["read"] < 150


def test_what_lies_beside_an_artifact_is_not_read(saved: Path) -> None:
    (saved / ".DS_Store").write_text("x")
    (saved / "lost+found").mkdir()
    load(saved, Fake)


def test_its_own_command_is_what_makes_it_again(engine: Fake, saved: Path) -> None:
    engine.report = {"command": "eqsat-deploy optimize net.py:net --out here"}
    engine.save(saved)
    edit("device", to="machine B")(saved)
    with pytest.raises(ArtifactError, match=r"with `eqsat-deploy optimize net\.py:net --out here`"):
        load(saved, Fake)


def test_keys_that_are_no_strings_are_not_made_strings(engine: Fake, saved: Path) -> None:
    engine.report = {"errors": [{1: 0.5}]}
    with pytest.raises(ArtifactError, match=r"manifest.report.errors\[0\] has the key 1, which is no string"):
        engine.save(saved)


def test_weights_of_nonsense_are_an_error_that_names_them(saved: Path) -> None:
    data = b"\xff" * 64
    (saved / "weights.safetensors").write_bytes(data)
    edit("files", "weights.safetensors", to={"bytes": 64, "sha256": hashlib.sha256(data).hexdigest()})(saved)
    with pytest.raises(ArtifactError, match=r"weights.safetensors cannot be read"):
        load(saved, Fake)


def test_whatever_a_runtime_raises_is_said_with_the_artifact(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, signature: Signature, options: Mapping[str, Any]) -> Fake:
        raise ZeroDivisionError("in the reader")

    monkeypatch.setattr(Fake, "load_files", refuse)
    with pytest.raises(ArtifactError, match=r"needs engine 'fake' .*in the reader"):
        load(saved, Fake)


def test_another_runtime_is_an_error_unless_the_engine_is_portable(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fake, "here", ("machine A", "runtime 2"))
    with pytest.raises(ArtifactError, match="runtime: saved runtime 1, here runtime 2"):
        load(saved, Fake)
    monkeypatch.setattr(Fake, "portable", True)
    monkeypatch.setattr("eqsat_deploy.artifact.saturating", lambda: False)
    with pytest.warns(UserWarning, match="it runs, but was not tuned for this machine; build it again"):
        load(saved, Fake)
    monkeypatch.setattr("eqsat_deploy.artifact.saturating", lambda: True)
    with pytest.warns(UserWarning, match="where INT8 made for another may saturate"):
        load(saved, Fake)


def test_weights_that_are_damaged_are_found_although_the_engine_was_loaded_meanwhile(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved / "weights.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    asked: list[Path] = []
    original = Fake.load_files.__func__  # type: ignore[attr-defined]

    def load_files(folder: Path, signature: Signature, options: Mapping[str, Any]) -> Fake:
        asked.append(folder)
        return original(Fake, folder, signature, options)  # type: ignore[no-any-return]

    monkeypatch.setattr(Fake, "load_files", load_files)
    with pytest.raises(ArtifactError, match=r"weights\.safetensors is not what was saved"):
        load(saved, Fake)
    assert asked == [saved / "engine"]


def test_an_engine_reads_no_file_before_it_is_checked(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved / "engine/program/code.txt"
    file.write_bytes(bytes(len(file.read_bytes())))
    monkeypatch.setattr(Fake, "load_files", lambda *arguments: pytest.fail("it was read"))
    with pytest.raises(ArtifactError, match=r"code\.txt is not what was saved .SHA-256") as raised:
        load(saved, Fake)
    assert "needs engine" not in str(raised.value)


def test_an_engine_that_cannot_run_here_is_an_error_with_its_reason(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, signature: Signature, options: Mapping[str, Any]) -> Fake:
        raise EngineError("no such processor")

    monkeypatch.setattr(Fake, "load_files", refuse)
    with pytest.raises(
        ArtifactError, match=r"needs engine 'fake' \(runtime 1, built on machine A\): no such"
    ):
        load(saved, Fake)


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left on device"), RuntimeError("disk"), KeyboardInterrupt()]
)
def test_an_interrupted_save_leaves_what_was_there(
    engine: Fake, saved: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    before = (saved / "manifest.json").read_bytes()

    def fail(self: Fake, folder: Path) -> None:
        (folder / "half").write_text("written")
        raise failure

    monkeypatch.setattr(Fake, "save_files", fail)
    for path in (saved, saved.with_name("new.eqsat")):
        expected = KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else ArtifactError
        with pytest.raises(expected):
            engine.save(path)
    assert (saved / "manifest.json").read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == ["model.eqsat"]


def test_something_else_under_the_name_is_never_replaced(engine: Fake, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_text("meow")
    file = tmp_path / "notes.txt"
    file.write_text("keep")
    for path in (folder, file):
        with pytest.raises(ArtifactError, match="exists and is not an artifact"):
            engine.save(path)
    assert (folder / "cat.jpg").read_text() == "meow"
    assert file.read_text() == "keep"


def test_a_missing_parent_and_an_unwritable_report_are_errors(engine: Fake, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot write beside"):
        engine.save(tmp_path / "nowhere" / "model.eqsat")
    engine.report = {"when": object()}
    with pytest.raises(ArtifactError, match="the report or an option is not JSON"):
        engine.save(tmp_path / "model.eqsat")
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_the_umask_lets_them(saved: Path) -> None:
    plain = saved.parent / "plain"
    plain.mkdir()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    (plain / "file").touch()
    files = [file for file in saved.rglob("*") if file.is_file()]
    assert len(files) == 4
    assert {file.stat().st_mode for file in files} == {(plain / "file").stat().st_mode}


def test_an_openvino_engine_survives_the_way_to_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = quantize(int8(traced(Residual(), torch.zeros(1, 3, 32, 32))), images(2))
    engine = OpenVINOEngine.build(quantized, batch=Batch(1, 2, 4), options={"threads": 1})
    engine.save(tmp_path / "model.eqsat", weights=True)
    loaded = load(tmp_path / "model.eqsat", OpenVINOEngine)
    x = images(1, batch=3)[0]
    torch.testing.assert_close(loaded(x), engine(x), rtol=1e-3, atol=1e-3)
    assert loaded.signature == engine.signature
    assert set(loaded.weights) == set(quantized.state_dict())
    assert loaded.options == {"threads": 1}


def test_an_artifact_keeps_how_the_engine_runs(engine: Fake, tmp_path: Path) -> None:
    engine.options = {"threads": 3}
    engine.save(tmp_path / "model.eqsat")
    loaded = load(tmp_path / "model.eqsat", Fake)
    assert loaded.options == {"threads": 3}
    engine.options = {"cache": tmp_path}
    with pytest.raises(ArtifactError, match="an option is not JSON"):
        engine.save(tmp_path / "model.eqsat")


def test_saving_leaves_the_umask_of_the_process_alone(
    engine: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.umask", lambda mask: pytest.fail("another thread's files would get it, too"))
    engine.save(tmp_path / "model.eqsat")


def test_what_was_there_survives_a_rename_that_fails(
    engine: Fake, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (saved / "manifest.json").read_bytes()
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if (
            (self / "manifest.json").is_file()
            and self != saved
            and target == saved
            and "-replaced" not in self.name
        ):
            raise OSError("busy")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(ArtifactError, match="busy; nothing was saved"):
        engine.save(saved)
    assert (saved / "manifest.json").read_bytes() == before
    assert [entry.name for entry in saved.parent.iterdir()] == ["model.eqsat"]
