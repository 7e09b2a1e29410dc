"""Images as the model's own library prepares them, or as it is told; and images that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import benchmarks._models  # noqa: F401  (makes torchvision importable)
from eqsat_deploy.calling import CallSpec, InputSpec
from eqsat_deploy.data import Reading, check_source, example_batch, load_batches
from eqsat_deploy.errors import InputError

pil = pytest.importorskip("PIL.Image")
timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")


def call(height: int, width: int, channels: int = 3) -> CallSpec:
    return CallSpec.plain([InputSpec("x", (None, channels, height, width), torch.float32)], 0)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    draw = np.random.default_rng(0)
    (tmp_path / "deeper").mkdir()
    for name, shape in (("a.png", (90, 70, 3)), ("b.JPG", (64, 80, 3)), ("deeper/c.bmp", (50, 50))):
        pil.fromarray(draw.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def opened(folder: Path) -> list[object]:
    return [pil.open(folder / name).convert("RGB") for name in ("a.png", "b.JPG", "deeper/c.bmp")]


def test_images_are_cropped_scaled_and_normalized(tmp_path: Path) -> None:
    pil.new("RGB", (60, 60), (255, 0, 127)).save(tmp_path / "b.png")
    pil.new("L", (12, 8), 255).save(tmp_path / "a.png")
    reading = Reading(mean=(0.5,), deviation=(0.5, 0.25, 0.5))
    ((x,),) = load_batches(str(tmp_path), call(4, 6), reading=reading)
    assert x.shape == (2, 3, 4, 6)
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor([1.0, 2.0, 1.0]))
    torch.testing.assert_close(x[1, :, 0, 0], torch.tensor([1.0, -2.0, 127 / 127.5 - 1]))


@pytest.mark.parametrize("side", [224, 96])
def test_timms_models_get_timms_preprocessing(photographs: Path, side: int) -> None:
    model = timm.create_model("test_vit.r160_in1k", img_size=side)
    config = timm.data.resolve_data_config({"input_size": (3, side, side)}, model=model)
    transform = timm.data.create_transform(**config)
    expected = torch.stack([transform(each) for each in opened(photographs)])
    ((x,),) = load_batches(str(photographs), call(side, side), model=model)
    assert torch.equal(x, expected)
    assert config["mean"] != timm.data.IMAGENET_DEFAULT_MEAN  # so that the default would differ


def test_torchvisions_models_get_the_preprocessing_of_their_weights(photographs: Path) -> None:
    make = torchvision.models.get_model_weights("resnet50").DEFAULT.transforms
    reading = Reading("torchvision:resnet50")
    for side, transform in ((224, make()), (112, make(crop_size=112, resize_size=116))):
        ((x,),) = load_batches(str(photographs), call(side, side), reading=reading)
        assert torch.equal(x, torch.stack([transform(each) for each in opened(photographs)]))
    ((x,),) = load_batches(str(photographs), call(32, 48), reading=reading)
    assert x.shape == (3, 3, 32, 48)


def test_what_is_said_goes_before_what_the_library_does(photographs: Path) -> None:
    model = timm.create_model("test_vit.r160_in1k", img_size=96)
    said = Reading(mean=(0.0,), deviation=(1.0,))
    ((x,),) = load_batches(str(photographs), call(96, 96), model=model, reading=said)
    assert 0 <= float(x.min()) < float(x.max()) <= 1


def test_example_inputs_have_the_models_own_size(photographs: Path) -> None:
    model = timm.create_model("test_vit.r160_in1k").eval()
    (x,) = example_batch(str(photographs), model)
    assert x.shape == (3, *model.pretrained_cfg["input_size"])
    conv = torch.nn.Conv2d(3, 4, 3)
    with pytest.raises(InputError, match="image-size"):
        example_batch(str(photographs), conv)
    with pytest.warns(UserWarning, match="ImageNet's mean"):
        (x,) = example_batch(str(photographs), conv, Reading(image_size=(20, 30)))
    assert x.shape == (3, 3, 20, 30)
    told = Reading(image_size=(20, 30), mean=(0.5,))
    with pytest.raises(InputError, match="does not run"):
        example_batch(str(photographs), torch.nn.Conv2d(5, 4, 3), told)


def test_the_first_bad_image_is_named_or_left_out(photographs: Path) -> None:
    (photographs / "aa.png").write_bytes(b"no image")
    torn = (photographs / "a.png").read_bytes()
    (photographs / "ab.png").write_bytes(torn[: len(torn) // 2])
    with pytest.raises(InputError, match=r"aa\.png cannot be read.*--skip-bad"):
        load_batches(str(photographs), call(8, 8))
    with pytest.warns(UserWarning, match=r"2 left out; .*aa\.png"):
        ((x,),) = load_batches(str(photographs), call(8, 8), reading=Reading(skip_bad=True))
    assert len(x) == 3
    for name in ("a.png", "b.JPG", "deeper/c.bmp"):
        (photographs / name).unlink()
    with pytest.raises(InputError, match=r"nothing can be read: .*aa\.png"):
        load_batches(str(photographs), call(8, 8), reading=Reading(skip_bad=True))


def test_images_of_different_sizes_are_refused_with_what_to_say(photographs: Path) -> None:
    segments = Reading("torchvision:fcn_resnet50")  # which resizes, and does not crop
    with pytest.raises(InputError, match="image-size"):
        load_batches(str(photographs), call(64, 64), reading=segments)
    both = Reading("torchvision:fcn_resnet50", image_size=(32, 32))
    with pytest.raises(InputError, match=r"\[3, 32, 32\], where \[3, 64, 64\]"):
        load_batches(str(photographs), call(64, 64), reading=both)


def test_what_is_no_image_model_is_said(photographs: Path) -> None:
    tokens = CallSpec.plain([InputSpec("ids", (None, 5), torch.int64)], 0)
    with pytest.raises(InputError, match="not one image"):
        load_batches(str(photographs), tokens)
    with pytest.raises(InputError, match="5 channels"):
        load_batches(str(photographs), call(8, 8, channels=5))
    with pytest.raises(InputError, match="2 numbers for 3 channels"):
        load_batches(str(photographs), call(8, 8), reading=Reading(mean=(0.5, 0.5)))
    ((x,),) = load_batches(str(photographs), call(8, 8, channels=1), limit=2)
    assert x.shape == (2, 1, 8, 8)
    check_source(str(photographs))
