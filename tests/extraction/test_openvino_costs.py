from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eqsat_extraction.cost_models.openvino import (
    OpenVINOModel,
    fused_steps,
    kind_of,
    launches,
    openvino_fp32,
    openvino_int8,
    operations,
    table,
)
from eqsat_extraction.kernel import CostModel, Epilogue, Kernel, Kind, TensorSpec


def spec(*shape: int, dtype: str = "float32", constant: bool = False) -> TensorSpec:
    return TensorSpec(shape, dtype, constant)


def convolution(
    channels: int = 64,
    out: int = 64,
    size: int = 28,
    kernel: int = 3,
    groups: int = 1,
    dtype: str = "float32",
) -> Kernel:
    weight = spec(out, channels // groups, kernel, kernel, constant=True)
    output = spec(1, out, size, size, dtype=dtype)
    flops = 2.0 * output.numel * channels // groups * kernel**2
    inputs = (spec(1, channels, size, size, dtype=dtype), weight, spec(out, constant=True))
    return Kernel("conv2d", Kind.CONVOLUTION, inputs, output, (("groups", groups),), flops=flops)


def linear(tokens: int = 196, width: int = 384, out: int = 384, dtype: str = "float32") -> Kernel:
    output = spec(1, tokens, out)
    inputs = (spec(1, tokens, width, dtype=dtype), spec(out, width, constant=True), spec(out, constant=True))
    return Kernel("linear", Kind.PRODUCT, inputs, output, flops=2.0 * output.numel * width)


@pytest.fixture(params=[openvino_int8, openvino_fp32])
def model(request: pytest.FixtureRequest) -> OpenVINOModel:
    made: OpenVINOModel = request.param()
    return made


def test_they_are_cost_models_in_microseconds(model: OpenVINOModel) -> None:
    assert isinstance(model, CostModel)
    assert (model.unit, model.float_dtype) == ("us", "float32")


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        (convolution(3, 64), "stem"),
        (convolution(), "convolution"),
        (convolution(kernel=1), "pointwise_convolution"),
        (convolution(groups=64), "depthwise"),
        (convolution(groups=4), "grouped"),
        (linear(), "linear"),
        (Kernel("gelu", Kind.POINTWISE, (spec(4),), spec(4)), "pointwise"),
        (Kernel("adaptive_avg_pool2d", Kind.REDUCTION, (spec(1, 4, 7, 7),), spec(1, 4, 1, 1)), "reduction"),
        (Kernel("max_pool2d", Kind.POOL, (spec(1, 4, 7, 7),), spec(1, 4, 3, 3)), "pool"),
        (Kernel("slice", Kind.MOVEMENT, (spec(4),), spec(2)), "copy"),
        (Kernel("opaque", Kind.OPAQUE, (spec(4),), spec(4)), "other"),
    ],
)
def test_every_kernel_has_a_row(kernel: Kernel, kind: str) -> None:
    assert kind_of(kernel) == kind
    assert kind in table()["kinds"]
    assert 0 < openvino_int8().price(kernel) < inf


def test_int8_is_cheaper_where_the_arithmetic_is() -> None:
    model = openvino_int8()
    for kernel in (
        convolution(128, 128),
        convolution(256, 256, 14),
        convolution(kernel=1),
        linear(width=768),
    ):
        integer = replace(kernel, inputs=(replace(kernel.inputs[0], dtype="int8"), *kernel.inputs[1:]))
        assert model.price(integer) < 0.6 * model.price(kernel)


def test_float32_only_has_no_integer_kernels() -> None:
    assert openvino_fp32().price(convolution(dtype="int8")) == inf
    assert openvino_fp32().price(convolution()) == openvino_int8().price(convolution())


def test_normalizations_do_not_compute_in_integers() -> None:
    kernel = Kernel("layer_norm", Kind.NORMALIZATION, (spec(1, 196, 384, dtype="int8"),), spec(1, 196, 384))
    assert openvino_int8().price(kernel) == inf


def test_views_and_constants_are_free(model: OpenVINOModel) -> None:
    assert model.price(Kernel("reshape", Kind.VIEW, (spec(4, 4),), spec(16))) == 0
    assert model.price(Kernel("mul", Kind.POINTWISE, (spec(4),), spec(4, constant=True))) == 0


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 40), st.sampled_from(["float32", "int8"]))
def test_more_work_never_costs_less(channels: int, out: int, size: int, dtype: str) -> None:
    model = openvino_int8()
    kernel = convolution(channels + 4, out, size, dtype=dtype)
    for larger in (
        convolution(channels + 12, out, size, dtype=dtype),
        convolution(channels + 4, out + 8, size, dtype=dtype),
        convolution(channels + 4, out, size + 1, dtype=dtype),
    ):
        assert model.price(larger) >= model.price(kernel) > 0


def test_channels_are_padded_to_vectors() -> None:
    assert operations(convolution(64, 1)) == operations(convolution(64, 16))
    assert operations(convolution(61, 64, dtype="int8")) == operations(convolution(64, 64, dtype="int8"))
    assert operations(convolution(64, 17)) == 2 * operations(convolution(64, 16))


RELU, GELU = Epilogue("relu"), Epilogue("gelu")


def residual(shape: tuple[int, ...]) -> Epilogue:
    return Epilogue("add", TensorSpec(shape))


def test_what_fuses_and_what_is_another_pass() -> None:
    shape = convolution().output.shape
    joined = (residual(shape), RELU)
    assert fused_steps(replace(convolution(), epilogue=joined)) == 2
    assert fused_steps(replace(convolution(dtype="int8"), epilogue=joined)) == 0
    assert fused_steps(replace(convolution(), epilogue=(*joined, residual(shape)))) == 2
    assert fused_steps(replace(linear(), epilogue=(GELU, residual(linear().output.shape)))) == 1
    scale = Epilogue("mul", TensorSpec((64, 1, 1), constant=True))
    assert fused_steps(replace(convolution(dtype="int8"), epilogue=(scale, RELU))) == 2


def test_a_step_that_does_not_fuse_costs_a_pass_of_its_own() -> None:
    model = openvino_int8()
    kernel = linear()
    joined = replace(kernel, epilogue=(residual(kernel.output.shape),))
    alone = Kernel("add", Kind.POINTWISE, (kernel.output, kernel.output), kernel.output)
    assert len(launches(joined)) == 2
    assert model.price(joined) == pytest.approx(model.price(kernel) + model.price(alone), rel=1e-6)


def test_leaving_float_for_int8_costs_a_conversion() -> None:
    model = openvino_int8()
    kernel = convolution(3, 32, 112)
    leaving = replace(kernel, output=replace(kernel.output, dtype="int8"))
    assert model.price(leaving) > model.price(kernel)
    clamp = Kernel("clamp", Kind.POINTWISE, (kernel.output,), leaving.output)
    assert model.price(clamp) > model.price(replace(clamp, output=kernel.output))
    integer = convolution(3, 32, 112, dtype="int8")
    assert model.price(integer) < model.price(leaving)


def test_whole_attention_is_the_sum_of_its_parts() -> None:
    model = openvino_int8()
    x = spec(2, 196, 384)
    whole = model.price(Kernel("multihead_attention", Kind.WHOLE_ATTENTION, (x, x, x), x, (("heads", 6),)))
    head = spec(12, 196, 64)
    inner = model.price(Kernel("attention", Kind.ATTENTION, (head, head, head), head))
    assert whole > inner > 0


def test_attention_whose_scale_is_one_is_a_pass_cheaper() -> None:
    model = openvino_int8()
    head = spec(12, 196, 64)
    scaled, unscaled = (
        Kernel("attention", Kind.ATTENTION, (head, head, head), head, (("scale", s),)) for s in (0.125, 1.0)
    )
    assert 0.9 < model.price(unscaled) / model.price(scaled) < 1
    packed = Kernel(
        "packed_attention",
        Kind.WHOLE_ATTENTION,
        (spec(2, 196, 1152),),
        spec(2, 196, 384),
        (("heads", 6), ("scale", 1.0)),
    )
    assert model.price(packed) == pytest.approx(model.price(unscaled))


def test_the_table_says_where_it_comes_from() -> None:
    provenance = table()["provenance"]
    assert {"command", "date", "openvino", "models", "kernels"} <= provenance.keys()
    for rows in table()["kinds"].values():
        assert "float32" in rows
        assert all(min(row.values()) >= 0 for row in rows.values())


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        (Kind.NORMALIZATION, "layer_norm"),
        (Kind.REDUCTION, "reduction"),
        (Kind.POOL, "pool"),
        (Kind.MOVEMENT, "copy"),
        (Kind.LOOKUP, "other"),
        (Kind.OPAQUE, "other"),
        (Kind.POINTWISE, "pointwise"),
    ],
)
def test_an_unknown_operator_is_priced_by_its_kind(kind: Kind, row: str) -> None:
    kernel = Kernel("of_a_plugin", kind, (spec(1, 8, 16),), spec(1, 8, 16))
    assert kind_of(kernel) == row
    assert 0 < openvino_int8().price(kernel) < inf


def concatenation(
    parts: int, channels: int = 64, side: int = 28, dtype: str = "int8", slot: int = 4
) -> Kernel:
    inputs = (spec(1, channels // parts, side, side, dtype=dtype),) * parts
    return Kernel(
        "concat", Kind.CONCAT, inputs, spec(1, channels, side, side, dtype=dtype), (("slot", slot),)
    )


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_a_concatenation_costs_more_of_more_parts_of_as_many_bytes(dtype: str) -> None:
    two, four = (openvino_int8().price(concatenation(parts, dtype=dtype)) for parts in (2, 4))
    assert 0 < two < four
    assert openvino_int8().price(concatenation(2, 128, dtype=dtype)) > two


def test_rows_of_images_are_copied_whole_and_channels_pixel_by_pixel() -> None:
    (channels,), (rows,) = (launches(concatenation(2, slot=slot)) for slot in (4, 5))
    assert channels.operations == 2 * 28 * 28
    assert rows.operations == 2 * 64


def test_a_concatenation_of_codes_is_cheaper_than_one_of_floats() -> None:
    codes, floats = (openvino_int8().price(concatenation(2, 256, dtype=d)) for d in ("int8", "float32"))
    assert codes < floats / 2


@pytest.mark.parametrize(
    ("window", "stride", "groups", "reason"),
    [
        (2, 2, 1, None),
        (3, 3, 1, None),
        (4, 2, 8, "with groups"),
        (4, 2, 32, "with groups"),
        (4, 4, 1, "stride"),
        (1, 2, 1, "stride"),
    ],
)
def test_which_transposed_convolutions_compute_in_integers(
    window: int, stride: int, groups: int, reason: str | None
) -> None:
    def kernel(dtype: str) -> Kernel:
        weight = spec(32, 32 // groups, window, window, constant=True)
        attributes = (("stride", (stride, stride)), ("groups", groups))
        inputs = (spec(1, 32, 8, 8, dtype=dtype), weight, spec(32, constant=True))
        return Kernel("conv_transpose2d", Kind.CONVOLUTION, inputs, spec(1, 32, 16, 16), attributes)

    found = openvino_int8().refusal(kernel("int8"))
    assert found is None if reason is None else reason in str(found)
    assert openvino_int8().refusal(kernel("float32")) is None


def test_in_float_beside_int8_a_convolution_is_slower_and_then_converts() -> None:
    among_floats, beside = openvino_fp32("avx2"), openvino_int8("avx2")
    for kernel in (convolution(groups=64, size=112), convolution(3, 32, 112), convolution(kernel=1)):
        assert beside.price(kernel) > among_floats.price(kernel)
        codes = kernel.writing("int8")
        own, conversion = launches(codes)
        assert (own.traffic, conversion.kind) == (launches(kernel)[0].traffic, "reorder")
        assert beside.price(codes) > beside.price(kernel)
    assert beside.price(linear()) == among_floats.price(linear())
