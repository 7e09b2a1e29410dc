"""Engines for inputs of any length: what they compute, and what cannot be padded."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import benchmarks._models  # noqa: F401  (makes torchvision importable)
import eqsat_deploy
from eqsat_deploy import cli, load, optimize
from eqsat_deploy.bucketed import BucketedEngine
from eqsat_deploy.buckets import BucketedModule
from eqsat_deploy.errors import ArtifactError, InputError, VerificationError
from tests.support.models import randomized

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SIZES = [4, 8]
BUCKETS = {"sequence": SIZES}


class Attending(nn.Module):
    """Every position attends to those that the mask names; results for each, over all, and in a channel-first order."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.query, self.head = nn.Embedding(20, 32), nn.Linear(32, 32), nn.Linear(32, 6)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.table(input_ids)
        scores = self.query(x) @ x.transpose(1, 2) / 8
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None, :] == 0, float("-inf"))
        x = scores.softmax(-1) @ x
        return {"all": x[:, 0], "each": self.head(x), "channels": x.transpose(1, 2)}


class Unmasked(nn.Module):
    """A mean over all positions, whatever stands there."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)


def tokens(length: int, batch: int = 3) -> Tensor:
    return torch.randint(1, 20, (batch, length), generator=torch.Generator().manual_seed(length))


def assert_like(expected: Any, found: Any, tolerance: float = 1e-4) -> None:
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert value.shape == found[name].shape
        torch.testing.assert_close(found[name], value, atol=tolerance * float(value.abs().max()), rtol=0)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return randomized(Attending())


@pytest.fixture(scope="module")
def forms(model: nn.Module) -> BucketedModule:
    return optimize(model, tokens(6), buckets=BUCKETS, cost="openvino_int8")


@pytest.fixture(scope="module")
def engine(forms: BucketedModule) -> BucketedEngine:
    pytest.importorskip("openvino")
    return forms.build("openvino", baseline=False)


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8])
def test_inputs_of_every_length_are_computed(
    model: nn.Module, forms: BucketedModule, engine: BucketedEngine, length: int
) -> None:
    ids = tokens(length)
    with torch.no_grad():
        assert_like(model(ids), forms(ids))
        assert_like(model(ids), engine(ids))
        mask = torch.ones_like(ids)
        mask[0, length // 2 + 1 :] = 0
        assert_like(model(ids, mask), engine(input_ids=ids, attention_mask=mask))


def test_arrays_are_answered_with_arrays(engine: BucketedEngine) -> None:
    ids = tokens(5)
    expected, found = engine(ids), engine(ids.numpy())
    for name, value in expected.items():
        assert isinstance(found[name], np.ndarray)
        assert np.array_equal(found[name], value.numpy())


def test_the_shortest_that_fits_runs(engine: BucketedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    kind = type(engine.engines[4])
    call = kind.__call__
    monkeypatch.setattr(
        kind, "__call__", lambda self, **given: ran.append(given["input_ids"].shape[1]) or call(self, **given)
    )
    for length in (1, 4, 5, 8):
        engine(tokens(length))
    assert ran == [4, 4, 8, 8]
    with pytest.raises(InputError, match=r"inputs of length 9: the longest .* is 8"):
        engine(tokens(9))
    with pytest.raises(InputError, match="inputs of one length"):
        engine(tokens(4), tokens(5))
    with pytest.raises(InputError, match="call it as forward"):
        engine(ids=tokens(4))


def test_forms_are_calibrated_on_batches_of_every_length_with_labels(
    model: nn.Module, forms: BucketedModule
) -> None:
    batches: list[Any] = [(tokens(length), torch.zeros(3)) for length in (2, 4, 7, 10)]
    batches.append({"input_ids": tokens(5), "labels": torch.zeros(3)})
    quantized = forms.quantize(batches)
    with torch.no_grad():
        assert_like(model(tokens(5)), quantized(tokens(5)), tolerance=0.1)
    with pytest.raises(InputError, match="a batch does not fit"):
        forms.quantize([torch.zeros(3)])


def test_a_saved_one_loads(model: nn.Module, engine: BucketedEngine, tmp_path: Path) -> None:
    engine.save(tmp_path / "buckets", weights=True)
    engine.save(tmp_path / "buckets", weights=True)
    assert sorted(p.name for p in (tmp_path / "buckets").iterdir()) == ["4", "8", "buckets.json"]
    loaded = load(tmp_path / "buckets")
    first, second = (loaded.engines[size].weights for size in SIZES)
    assert first is second
    for name in ("weights.safetensors", "engine/model.bin"):
        one, other = (tmp_path / "buckets" / str(size) / name for size in SIZES)
        assert one.samefile(other)
    with torch.no_grad():
        assert_like(model(tokens(6)), loaded(tokens(6)))
    file = tmp_path / "buckets" / "buckets.json"
    text = file.read_text()
    for wrong in (
        text.replace('"input_ids"', '"ids"'),
        text.replace("4", "5", 1),
        text.replace("null", "99"),
        text[:-9],
        "{}",
    ):
        assert wrong != text
        file.write_text(wrong)
        with pytest.raises(ArtifactError, match=r"buckets"):
            load(tmp_path / "buckets")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").touch()
    with pytest.raises(ArtifactError, match="holds no"):
        engine.save(tmp_path / "other")


def test_what_padding_changes_is_refused() -> None:
    model = randomized(Unmasked())
    with pytest.raises(VerificationError, match=r"change what the model computes.*needs a mask"):
        optimize(model, torch.randn(2, 6, 5), buckets=BUCKETS, cost="flops")
    each = randomized(nn.Sequential(nn.Linear(5, 4), nn.ReLU()))
    x = torch.randn(2, 3, 5)
    found = optimize(each, torch.randn(2, 6, 5), buckets=BUCKETS, cost="flops")
    torch.testing.assert_close(found(x), each(x))


@pytest.mark.parametrize(
    ("example", "buckets", "more", "says"),
    [
        (torch.randn(2, 6, 5), {"sequence": []}, {}, "lengths are expected, such as"),
        (torch.randn(2, 6, 5), {"height": [4]}, {}, "lengths are expected, such as"),
        (torch.randn(2, 6, 5), {"sequence": [4], "height": [4]}, {}, "lengths are expected, such as"),
        (torch.randn(2, 6, 5), [4], {}, "lengths are expected, such as"),
        (torch.randn(2, 6, 5), {"sequence": 4}, {}, "lengths are expected, such as"),
        (torch.randn(2, 6, 5), {"sequence": [0]}, {}, "a whole number"),
        (torch.randn(6), {"sequence": [4]}, {}, "an axis behind the batch"),
        (torch.randn(2, 1, 5), {"sequence": [4]}, {}, "length 1"),
        (torch.randn(2, 6, 5), {"sequence": [4]}, {"padding": {"y": 0.0}}, "'y' is none of the inputs input"),
        (
            torch.randn(2, 6, 5),
            {"sequence": [4]},
            {"dynamic_shapes": ({0: "n"},)},
            "leave dynamic_shapes= out",
        ),
        (torch.randn(2, 6, 5), None, {"padding": {"input": 0.0}}, "it is for buckets="),
    ],
)
def test_what_cannot_be_is_said(example: Tensor, buckets: Any, more: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        optimize(nn.Linear(5, 4).eval(), example, buckets=buckets, cost="flops", **more)


def test_an_exported_program_has_no_buckets() -> None:
    program = torch.export.export(nn.Linear(5, 4).eval(), (torch.randn(2, 6, 5),))
    with pytest.raises(InputError, match="the sizes of this ExportedProgram are fixed"):
        optimize(program, buckets=BUCKETS, cost="flops")


def test_calibration_is_of_any_length(model: nn.Module) -> None:
    """Data in the call is what `quantize` takes."""
    batches = [tokens(length) for length in (2, 4, 7)]
    with torch.no_grad():
        found = optimize(model, tokens(6), buckets=BUCKETS, cost="openvino_int8", calibration=batches)
        assert_like(model(tokens(5)), found(tokens(5)), tolerance=0.1)


@pytest.mark.slow
def test_a_model_of_transformers_with_and_without_a_mask(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("openvino")
    configuration = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128, vocab_size=50,
        max_position_embeddings=16, pad_token_id=7,
    )  # fmt: skip
    model = randomized(transformers.BertModel(configuration))
    forms = optimize(model, {"input_ids": tokens(6)}, buckets=BUCKETS, cost="openvino_int8")
    assert forms.padding.values == {"input_ids": 7.0, "attention_mask": 0.0}
    forms.build("openvino", baseline=False).save(tmp_path / "bert", weights=True)
    engine = eqsat_deploy.load(tmp_path / "bert")
    for length in (3, 5, 7, 8):
        mask = torch.ones(3, length, dtype=torch.int64)
        mask[0, length // 2 + 1 :] = 0
        for given in ({}, {"attention_mask": mask}):
            with torch.no_grad():
                expected = model(input_ids=tokens(length), **given)
            kept = mask.bool() if given else torch.ones(3, length, dtype=torch.bool)
            for function in (engine, forms):
                found = function(input_ids=tokens(length), **given)
                assert found.last_hidden_state.shape == expected.last_hidden_state.shape
                for one, other in (
                    (found.last_hidden_state[kept], expected.last_hidden_state[kept]),
                    (found.pooler_output, expected.pooler_output),
                ):
                    torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    files = [
        [tmp_path / "bert" / str(size) / name for size in SIZES]
        for name in ("weights.safetensors", "engine/model.bin")
    ]
    assert all(one.samefile(other) for one, other in files)
    weights = safetensors.torch.load_file(files[0][0])
    of_one = {name: value.shape for name, value in weights.items() if "/" in name}
    assert of_one
    assert all(name.startswith("8/") and 8 in shape for name, shape in of_one.items())


def test_a_server_answers_every_length(model: nn.Module, engine: BucketedEngine, tmp_path: Path) -> None:
    client = pytest.importorskip("tritonclient.http")
    from tests.deploy.serving.test_server import serving

    engine.save(tmp_path / "net")
    with serving(tmp_path / "net") as (_, where):
        server = client.InferenceServerClient(where)

        def answered(ids: Tensor, mask: Tensor) -> list[Tensor]:
            given = []
            for name, value in (("input_ids", ids), ("attention_mask", mask)):
                given.append(client.InferInput(name, list(value.shape), "INT64"))
                given[-1].set_data_from_numpy(value.numpy())
            found = server.infer("net", given)
            return [torch.from_numpy(found.as_numpy(f"output_{index}")) for index in range(3)]

        described = server.get_model_metadata("net")
        assert {each["name"]: each["shape"] for each in described["inputs"]} == {
            "input_ids": [-1, -1], "attention_mask": [-1, -1],
        }  # fmt: skip
        assert [each["shape"] for each in described["outputs"]] == [[-1, 32], [-1, -1, 6], [-1, 32, -1]]
        for length in (1, 4, 7):
            ids, mask = tokens(length), torch.ones(3, length, dtype=torch.int64)
            with torch.no_grad():
                expected = model(ids, mask)
            assert_like(expected, dict(zip(expected, answered(ids, mask), strict=True)))
        with pytest.raises(client.InferenceServerException, match="inputs of length 9: the longest"):
            answered(tokens(9), torch.ones(3, 9, dtype=torch.int64))
        with pytest.raises(client.InferenceServerException, match="inputs of one length are expected"):
            answered(tokens(4), torch.ones(3, 5, dtype=torch.int64))


def test_only_what_differs_is_there_twice(
    model: nn.Module, forms: BucketedModule, engine: BucketedEngine
) -> None:
    names = set(forms.forms[4].state_dict()) | set(forms.forms[8].state_dict())
    assert set(engine.engines[4].weights) - names == set()
    first = engine.engines[4]
    changed = {name: value + 1 if name == "head.bias" else value for name, value in first.weights.items()}
    other = copy.copy(engine.engines[8])
    other.weights = changed
    joined = BucketedEngine(engine.padding, {4: copy.copy(first), 8: other}).engines
    assert joined[4].weights is joined[8].weights
    assert set(joined[8].weights) - names == {"8/head.bias"}


@pytest.mark.filterwarnings("ignore")
def test_the_command_line_makes_and_inspects_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import torch\n"
        "from tests.deploy.test_buckets import Attending, tokens\n"
        "def net():\n    torch.manual_seed(0)\n    return Attending()\n"
        "def data():\n    return [{'input_ids': tokens(length)} for length in (6, 3, 8)]\n"
    )
    words = [
        "optimize",
        "net.py:net",
        "--inputs",
        "net.py:data",
        "--calibration",
        "net.py:data",
        "--no-baseline",
    ]
    assert cli.main([*words, "--buckets", "sequence=4,8", "--out", "net.eqsat", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert sorted(result["buckets"]) == ["4", "8"]
    assert all("engine" in report for report in result["buckets"].values())
    torch.manual_seed(0)
    model = Attending().eval()
    with torch.no_grad():
        assert_like(model(tokens(5)), load("net.eqsat")(tokens(5)), tolerance=0.1)
    assert cli.main(["inspect", "net.eqsat", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["padding"] == {"input_ids": 0.0, "attention_mask": 0.0}
    assert found["buckets"]["8"]["command"].endswith("--buckets sequence=4,8 --out net.eqsat --json")
    assert cli.main(["inspect", "net.eqsat/8", "--json"]) == 0
    assert cli.main(["verify", "net.eqsat", "--data", "none.npz"]) != 0
    assert (
        "holds engines for several lengths of inputs: load them with torch, or one of them"
        in capsys.readouterr().err
    )
    for wrong in ("length=3", "sequence=", "sequence=0", "sequence=3,", "3"):
        assert cli.main(["optimize", "net.py:net", "--buckets", wrong]) == 2
        assert "such as sequence=32,64,128" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    assert cli.main([*words, "--buckets", "sequence=4,8", "--out", "full"]) != 0
    assert "holds no buckets.json" in capsys.readouterr().err
