"""Cost models: prices order kernels as targets do, refusals follow their rules, tables say their sources."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import EntryPoint
from math import inf, isfinite

import pytest

from eqsat_extraction import cost_models as registry
from eqsat_extraction import registry as lookup
from eqsat_extraction.cost_models import COST_MODELS, CostModelError, counting, find_cost_model, roofline
from eqsat_extraction.cost_models.onnxruntime import ort_int8
from eqsat_extraction.errors import RegistrationError, UnknownNameError
from eqsat_extraction.kernel import CostModel, Epilogue, Kernel, Kind, TensorSpec

BUILT_IN = {
    "kernels": "eqsat_extraction.cost_models.counting:kernels",
    "flops": "eqsat_extraction.cost_models.counting:flops",
    "bytes": "eqsat_extraction.cost_models.counting:bytes",
    "trt_int8": "eqsat_extraction.cost_models.roofline:trt_int8",
    "trt_fp16": "eqsat_extraction.cost_models.roofline:trt_fp16",
    "ort_int8": "eqsat_extraction.cost_models.onnxruntime:ort_int8",
}


@pytest.fixture
def installed(monkeypatch):
    """Replaces the installed entry points by those of a dict of name to value, built-in ones by default."""

    def install(*pairs: tuple[str, str]) -> None:
        entries = [EntryPoint(name, value, COST_MODELS.group) for name, value in pairs]
        monkeypatch.setattr(lookup, "entry_points", lambda group: entries)

    install(*BUILT_IN.items())
    return install


def spec(*shape: int, dtype: str = "float32", constant: bool = False) -> TensorSpec:
    return TensorSpec(shape, dtype, constant)


def conv(
    source: tuple[int, ...] = (1, 64, 56, 56), out: int = 64, kernel: int = 1, stride: int = 1,
    groups: int = 1,
    dtype: str = "float16", result: str | None = None, epilogue: tuple[Epilogue, ...] = (),
) -> Kernel:  # fmt: skip
    batch, channels, height, width = source
    shape = (batch, out, -(-height // stride), -(-width // stride))
    weight = spec(out, channels // groups, kernel, kernel, dtype=dtype, constant=True)
    flops = 2.0 * batch * out * shape[2] * shape[3] * weight.numel / out
    return Kernel(
        "conv2d",
        Kind.CONVOLUTION,
        (spec(*source, dtype=dtype), weight),
        spec(*shape, dtype=result or dtype),
        (),
        epilogue,
        flops,
    )


def linear(
    source: tuple[int, ...] = (1, 197, 768), out: int = 768, dtype: str = "float16", result: str = "float16",
    epilogue: tuple[Epilogue, ...] = (),
) -> Kernel:  # fmt: skip
    tokens = spec(*source, dtype=dtype)
    weight = spec(out, source[-1], dtype=dtype, constant=True)
    output = spec(*source[:-1], out, dtype=result)
    return Kernel(
        "linear", Kind.PRODUCT, (tokens, weight), output, (), epilogue, 2.0 * output.numel * source[-1]
    )


KINDS = {
    "max_pool2d": Kind.POOL,
    "softmax": Kind.NORMALIZATION,
    "layer_norm": Kind.NORMALIZATION,
    "opaque": Kind.OPAQUE,
    "permute": Kind.MOVEMENT,
}


def simple(op: str, *inputs: TensorSpec, dtype: str = "float16") -> Kernel:
    """A kernel whose result has the shape of its first input, a pointwise one unless `KINDS` says otherwise."""
    return Kernel(
        op,
        KINDS.get(op, Kind.POINTWISE),
        inputs,
        replace(inputs[0], dtype=dtype),
        flops=float(inputs[0].numel),
    )


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_built_in_models_are_found_by_name(installed, name):
    model = find_cost_model(name)
    assert model.name == name
    assert isinstance(model, CostModel)
    assert 0 < model.price(conv()) < inf


def test_listing_is_alphabetical_and_imports_nothing(installed):
    installed(("zeta", "no.such.module:model"), ("alpha", "no.other.module:model"))
    assert list(registry.cost_models()) == ["alpha", "zeta"]


def test_two_models_of_one_name_are_an_error_naming_both(installed):
    installed(*BUILT_IN.items(), ("flops", "someone.elses:flops"))
    with pytest.raises(RegistrationError, match=r"counting:flops.*someone\.elses:flops"):
        find_cost_model("kernels")


def test_unknown_model_lists_the_known_ones(installed):
    with pytest.raises(
        UnknownNameError, match=r"trt_int9.*bytes, flops, kernels, ort_int8, trt_fp16, trt_int8"
    ):
        find_cost_model("trt_int9")


def test_entry_point_that_makes_something_else_is_refused(installed):
    installed(("odd", "builtins:dict"))
    with pytest.raises(RegistrationError, match="dict"):
        find_cost_model("odd")


def test_counting_models_count():
    kernel = linear((2, 3), 4, epilogue=(Epilogue("relu"),))
    assert counting.kernels().price(kernel) == 1
    assert counting.flops().price(kernel) == kernel.flops == 2 * 2 * 3 * 4
    assert counting.bytes().price(kernel) == 2 * (2 * 3 + 3 * 4 + 2 * 4)


@pytest.mark.parametrize("model", [counting.kernels(), counting.bytes(), roofline.trt_int8()])
def test_views_and_constants_are_free_and_copies_are_not(model):
    source = spec(1, 8, 4, 4)
    assert model.price(Kernel("reshape", Kind.VIEW, (source,), spec(1, 128))) == 0
    assert model.price(Kernel("mul", Kind.POINTWISE, (source, source), replace(source, constant=True))) == 0
    assert model.price(Kernel("permute", Kind.MOVEMENT, (source,), spec(1, 4, 4, 8))) > 0


@pytest.mark.parametrize("table", roofline.device_tables(), ids=lambda table: table.device)
def test_every_figure_of_a_table_has_a_source(table):
    figures = set(table.__dataclass_fields__) - {"device", "matches", "provenance"}
    assert set(table.provenance) == figures
    assert all(len(source) > 20 for source in table.provenance.values())


@pytest.mark.parametrize(
    ("reported", "device"),
    [
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"), ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"),
        ("Tesla T4", "NVIDIA T4"),
        ("NVIDIA L4", "NVIDIA L4"), ("Orin", "NVIDIA Jetson AGX Orin 64GB"),
    ],
)  # fmt: skip
def test_tables_are_found_by_the_name_cuda_reports(reported, device):
    assert roofline.trt_int8(device=reported).table.device == device


def test_a_device_without_a_table_is_refused_and_not_taken_for_its_namesake():
    with pytest.raises(CostModelError, match=r"L40S.*known are.*L4"):
        roofline.trt_int8(device="NVIDIA L40S")


def test_a_table_can_come_from_a_file(tmp_path):
    path = tmp_path / "mine.json"
    original = registry.__path__[0] + "/tables/l4.json"
    with open(original) as file:
        text = file.read()
    path.write_text(text.replace('"launch_us": 2.0', '"launch_us": 50.0'))
    assert roofline.trt_fp16(str(path)).price(conv()) == pytest.approx(
        roofline.trt_fp16("L4").price(conv()) + 48
    )
    path.write_text(text.replace('"sms"', '"multiprocessors"'))
    with pytest.raises(CostModelError, match="multiprocessors"):
        roofline.trt_fp16(str(path))


TRT = roofline.trt_int8("L4")


def test_int8_is_faster_where_arithmetic_dominates():
    big = (32, 256, 56, 56)
    assert TRT.price(conv(big, 256, 3, dtype="int8")) < 0.6 * TRT.price(conv(big, 256, 3))


def test_padding_is_paid_for():
    wide, narrow = conv((8, 32, 56, 56), 32, 3, dtype="int8"), conv((8, 17, 56, 56), 17, 3, dtype="int8")
    arithmetic = replace(TRT.table, bandwidth_gb_s=1e9, launch_us=0.0)
    model = replace(TRT, table=arithmetic)
    assert model.price(narrow) == pytest.approx(model.price(wide))
    half = [replace(kernel, inputs=tuple(replace(s, dtype="float16") for s in kernel.inputs),
                    output=replace(kernel.output, dtype="float16")) for kernel in (narrow, wide)]  # fmt: skip
    assert model.price(half[0]) < model.price(half[1])


def test_few_tiles_leave_multiprocessors_idle():
    arithmetic = replace(TRT.table, bandwidth_gb_s=1e9, launch_us=0.0)
    model = replace(TRT, table=arithmetic)
    one, many = linear((1, 64, 64), 64), linear((1, 64 * 64, 64), 64)
    assert model.price(many) < 16 * model.price(one)


def test_two_launches_cost_more_than_a_fused_one():
    fused = conv(epilogue=(Epilogue("relu"),))
    alone = TRT.price(conv()) + TRT.price(simple("relu", conv().output))
    assert TRT.price(fused) < alone - TRT.table.launch_us


def test_crossing_layouts_and_precisions_costs_a_pass():
    tokens = spec(8, 3136, 96, dtype="float16")
    permute = Kernel("permute", Kind.MOVEMENT, (tokens,), spec(8, 96, 3136, dtype="float16"))
    quantize = Kernel("quantize", Kind.CONVERSION, (tokens,), replace(tokens, dtype="int8"))
    assert TRT.price(permute) > TRT.price(quantize) > TRT.table.launch_us


def test_a_matrix_vector_product_gains_nothing_in_int8():
    head = linear((1, 2048), 1000)
    assert TRT.price(linear((1, 2048), 1000, dtype="int8")) >= TRT.price(head)
    assert TRT.price(linear((64, 2048), 1000, dtype="int8")) < TRT.price(linear((64, 2048), 1000))


def test_depthwise_int8_pays_only_when_it_writes_int8():
    depthwise = {"source": (8, 192, 56, 56), "out": 192, "kernel": 7, "groups": 192}
    floating = TRT.price(conv(**depthwise))
    assert TRT.price(conv(**depthwise, dtype="int8")) < floating
    assert TRT.price(conv(**depthwise, dtype="int8", result="float16")) > floating


def test_a_float_weight_of_an_int8_kernel_is_stored_as_int8():
    kernel = linear(dtype="int8")
    stored = replace(kernel, inputs=(kernel.inputs[0], replace(kernel.inputs[1], dtype="float32")))
    assert TRT.traffic(stored) == TRT.traffic(kernel)


SKIP8, SKIP16 = (Epilogue("add", spec(1, 64, 56, 56, dtype=dtype)) for dtype in ("int8", "float16"))
GELU, RELU, SILU = (Epilogue(op) for op in ("gelu", "relu", "silu"))
TOKENS8, TOKENS16 = (spec(1, 12, 197, 64, dtype=dtype) for dtype in ("int8", "float16"))


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (conv(dtype="int8", epilogue=(GELU,)), None),
        (conv(epilogue=(GELU,)), None),
        (conv(dtype="int8", result="float16", epilogue=(GELU,)), "GELU"),
        (linear(dtype="int8", epilogue=(GELU,)), None),
        (conv(dtype="int8", epilogue=(SKIP8, RELU)), None),
        (conv(dtype="int8", epilogue=(SKIP16, RELU)), "residual"),
        (conv(dtype="int8", result="float16", epilogue=(SKIP16, RELU)), None),
        (conv(dtype="int8", result="float16", epilogue=(SKIP8,)), "residual"),
        (conv(epilogue=(Epilogue("add", spec(1, 64, 1, 1)),)), "broadcast"),
        (conv(epilogue=(Epilogue("add", spec(1, 64, 1, 1, constant=True)),)), None),
        (conv(epilogue=(SILU,)), "silu"),
        (conv(epilogue=(Epilogue("mul", spec(1, 64, 1, 1, constant=True)), SKIP16, RELU)), None),
        (conv(epilogue=(SKIP16, RELU, SKIP16)), "at this place"),
        (conv(epilogue=(RELU, SKIP16)), "at this place"),
        (conv(epilogue=(SKIP16, SKIP16)), "at this place"),
        (conv(epilogue=(RELU, GELU)), "at this place"),
        (conv(epilogue=(Epilogue("mul", SKIP16.operand),)), "at this place"),
        (linear(epilogue=(SILU,)), None),
        (conv(result="int8"), "another launch"),
        (simple("add", TOKENS8, TOKENS8, dtype="int8"), None),
        (simple("add", TOKENS8, TOKENS8), "no weights"),
        (simple("add", TOKENS8, TOKENS16, dtype="int8"), "no weights"),
        (simple("max_pool2d", TOKENS8, dtype="int8"), None),
        (simple("softmax", TOKENS8, dtype="int8"), "float"),
        (simple("layer_norm", TOKENS16, dtype="int8"), None),
        (simple("opaque", TOKENS8, dtype="int8"), "FP16"),
        (Kernel("attention", Kind.ATTENTION, (TOKENS8,) * 3, TOKENS16), "FP16"),
        (Kernel("attention", Kind.ATTENTION, (TOKENS16,) * 3, TOKENS16), None),
        (
            Kernel("matmul", Kind.PRODUCT, (TOKENS8, spec(1, 12, 64, 197, dtype="float16")), TOKENS16),
            "one operand",
        ),
    ],
)
def test_refusals_follow_the_rules_of_tensorrt(kernel, reason):
    refusal = TRT.refusal(kernel)
    if reason is None:
        assert refusal is None
        assert isfinite(TRT.price(kernel))
    else:
        assert reason in refusal
        assert TRT.price(kernel) == inf


def test_the_fp16_model_has_no_int8_kernels():
    model = roofline.trt_fp16("L4")
    assert not model.int8
    assert model.price(conv(dtype="int8")) == inf
    assert model.price(conv()) == TRT.price(conv())


def test_attention_with_its_projections_costs_its_launches():
    tokens = spec(1, 197, 768, dtype="float16")
    weights = (spec(2304, 768, constant=True), spec(768, 768, constant=True))
    whole = Kernel("multihead_attention", Kind.WHOLE_ATTENTION, (tokens, *weights), tokens, (("heads", 12),))
    heads = spec(12, 197, 64, dtype="float16")
    attention = Kernel("attention", Kind.ATTENTION, (heads,) * 3, heads)
    packed = Kernel(
        "packed_attention",
        Kind.WHOLE_ATTENTION,
        (spec(1, 197, 2304, dtype="float16"),),
        tokens,
        (("heads", 12),),
    )
    assert TRT.price(packed) == pytest.approx(TRT.price(attention))
    assert TRT.price(whole) == pytest.approx(sum(map(TRT.price, [linear(out=2304), attention, linear()])))


def test_attention_that_cannot_fuse_pays_for_its_scores():
    fits, odd = spec(12, 512, 64, dtype="float16"), spec(12, 512, 65, dtype="float16")
    assert TRT.price(Kernel("attention", Kind.ATTENTION, (odd,) * 3, odd)) > 2 * TRT.price(
        Kernel("attention", Kind.ATTENTION, (fits,) * 3, fits)
    )


ORT = ort_int8()


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (conv(dtype="int8", epilogue=(RELU,)), None),
        (conv(dtype="int8", result="float32"), "also writes INT8"),
        (conv(dtype="int8", epilogue=(SKIP8, RELU)), "add, relu does not fuse"),
        (conv(dtype="float32", epilogue=(RELU, RELU)), "relu, relu does not fuse"),
        (conv(dtype="float32", epilogue=(Epilogue("add", spec(1, 64, 56, 56)), RELU)), None),
        (conv(dtype="float32", epilogue=(GELU,)), "gelu does not fuse"),
        (linear(dtype="int8", result="float32"), None),
        (linear(dtype="int8", result="int8", epilogue=(GELU,)), "gelu does not fuse"),
        (linear(dtype="float32", result="float32", epilogue=(GELU,)), None),
        (linear(dtype="float32", result="int8"), "another node"),
        (simple("add", TOKENS8, TOKENS8, dtype="int8"), None),
        (simple("add", TOKENS8, TOKENS8, dtype="float32"), "runs in float"),
        (replace(simple("add", TOKENS8, TOKENS8, dtype="int8"), epilogue=(RELU,)), None),
        (
            replace(simple("add", TOKENS16, TOKENS16, dtype="float32"), epilogue=(RELU,)),
            "no such epilogue",
        ),
        (simple("silu", TOKENS8, dtype="int8"), "runs in float"),
        (simple("layer_norm", TOKENS16, dtype="float32"), None),
    ],
)
def test_refusals_follow_what_onnxruntime_was_seen_to_do(kernel, reason):
    refusal = ORT.refusal(kernel)
    if reason is None:
        assert refusal is None
        assert isfinite(ORT.price(kernel))
    else:
        assert reason in refusal
        assert ORT.price(kernel) == inf


def test_onnxruntime_gains_from_int8_and_pays_for_conversions_and_bias():
    assert ORT.price(conv(kernel=3, dtype="int8")) < ORT.price(conv(kernel=3, dtype="float32")) / 2
    tokens = spec(1, 197, 768)
    assert (
        ORT.price(Kernel("quantize", Kind.CONVERSION, (tokens,), replace(tokens, dtype="int8")))
        > ORT.launch_us
    )
    plain = linear(dtype="int8", result="float32")
    biased = replace(plain, inputs=(*plain.inputs, spec(768, constant=True)))
    assert ORT.price(biased) > ORT.price(plain) + ORT.launch_us


def resnet(depth: tuple[int, ...], dtype: str) -> list[Kernel]:
    """Bottleneck ResNet at batch 1 as TensorRT runs it: one launch per convolution, all of it in `dtype`."""
    shape = (1, 64, 56, 56)
    launches = [
        conv((1, 3, 224, 224), 64, 7, 2, dtype=dtype, epilogue=(RELU,)),
        simple("max_pool2d", spec(*shape, dtype=dtype), dtype=dtype),
    ]
    for stage, blocks in enumerate(depth):
        width = 64 * 2**stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 0 else 1
            skip = spec(*shape, dtype=dtype)
            if block == 0:
                launches.append(conv(shape, 4 * width, 1, stride, dtype=dtype))
                skip = launches[-1].output
            launches.append(conv(shape, width, 1, dtype=dtype, epilogue=(RELU,)))
            launches.append(conv(launches[-1].output.shape, width, 3, stride, dtype=dtype, epilogue=(RELU,)))
            last = conv(
                launches[-1].output.shape, 4 * width, 1, dtype=dtype, epilogue=(Epilogue("add", skip), RELU)
            )
            launches.append(last)
            shape = last.output.shape
    pooled = Kernel(
        "adaptive_avg_pool2d", Kind.REDUCTION, (spec(*shape, dtype=dtype),), spec(1, 2048, 1, 1, dtype=dtype)
    )
    return [*launches, pooled, linear((1, 2048), 1000)]


def vit(batch: int, dtype: str) -> list[Kernel]:
    """ViT-B/16 with INT8 linear maps (when `dtype` says so) and FP16 attention."""
    tokens, heads = spec(batch, 197, 768, dtype="float16"), spec(batch * 12, 197, 64, dtype="float16")
    shape, add = tokens.shape, (Epilogue("add", tokens),)
    quantize = (
        [Kernel("quantize", Kind.CONVERSION, (tokens,), replace(tokens, dtype="int8"))]
        if dtype == "int8"
        else []
    )
    block = [
        simple("layer_norm", tokens, dtype=dtype), linear(shape, 2304, dtype),
        simple("permute", spec(batch, 197, 2304, dtype="float16")),
        Kernel("attention", Kind.ATTENTION, (heads,) * 3, heads),
        *quantize, linear(shape, 768, dtype, epilogue=add), simple("layer_norm", tokens, dtype=dtype),
        linear(shape, 3072, dtype, dtype, epilogue=(GELU,)),
        linear((batch, 197, 3072), 768, dtype, epilogue=add),
    ]  # fmt: skip
    return [conv((batch, 3, 224, 224), 768, 16, 16), *block * 12]


@pytest.mark.parametrize(
    ("device", "network", "published"),
    [
        # NVIDIA/TensorRT, tools/tensorflow-quantization model zoo: A100, TensorRT 8.4, batch 1, milliseconds.
        ("A100", resnet((3, 4, 6, 3), "int8"), 0.46),
        ("A100", resnet((3, 4, 23, 3), "int8"), 0.84),
        # A deployment library's public documentation: L4, TensorRT 10.9, batch 1.
        ("L4", resnet((3, 4, 6, 3), "int8"), 0.218),
        ("L4", resnet((3, 4, 6, 3), "float16"), 0.267),
        # NVIDIA/FasterTransformer, ViT guide: A100, batch 8 and 32.
        ("A100", vit(8, "int8"), 2.38),
        ("A100", vit(8, "float16"), 3.03),
        ("A100", vit(32, "int8"), 6.43),
        ("A100", vit(32, "float16"), 10.04),
    ],
)
def test_whole_networks_are_priced_near_published_latencies(device, network, published):
    """The tables are not fitted: they reach a factor of 2.3, and this keeps them from drifting further."""
    price = sum(map(roofline.trt_int8(device).price, network)) / 1000
    assert published / 2.3 < price < published * 2.3


@pytest.mark.parametrize(
    ("known", "op"),
    [
        (conv(), "conv_of_a_plugin"),
        (simple("max_pool2d", spec(1, 64, 28, 28)), "lp_pool2d"),
        (simple("softmax", spec(1, 12, 197, 197)), "sparsemax"),
        (Kernel("attention", Kind.ATTENTION, (TOKENS16,) * 3, TOKENS16), "linear_attention"),
        (simple("relu", spec(1, 64, 28, 28)), "squared_relu"),
    ],
)
def test_an_unknown_operator_is_priced_by_its_kind(known, op):
    for model in (TRT, ORT):
        assert model.price(replace(known, op=op)) == model.price(known)
