"""A rebuilt module in OpenVINO's operators, each torch function written as the one that it is.

What OpenVINO's own frontend makes of a traced graph, without the tracing and the decoding, which take ten times as
long. A function that `FUNCTIONS` lacks, or that is called in a way that it does not know, raises `Unwritten`: nothing
is guessed, the module is then traced.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from eqsat_deploy.deployment import Signature
from eqsat_deploy.engines.program import flat_module
from eqsat_deploy.language.attention import SelfAttention, attended
from eqsat_deploy.quantization.fake_quantize import FakeQuantize, swapped

DTYPES = {torch.float32: "f32", torch.int64: "i64", torch.int32: "i32", torch.bool: "boolean"}
FREE = -1
"""A size that is not known: the batch. A reshape infers it; nothing may be computed with it."""

FUNCTIONS: dict[Any, Callable[..., Any]] = {}
"""What writes a torch function, by the function, and by the name of the tensor's method."""


class Unwritten(Exception):
    """A function, or a way to call one, that is not in this file."""


class Written:
    """A tensor that OpenVINO is to compute: torch functions on it write more of the model."""

    def __init__(self, output: Any) -> None:
        self.output = output

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes, `FREE` where one is not known."""
        sizes = self.output.get_partial_shape()
        return tuple(size.get_length() if size.is_static else FREE for size in sizes)

    @property
    def dtype(self) -> torch.dtype | None:
        """Its dtype; None for one that inputs cannot have."""
        name = self.output.get_element_type().get_type_name()
        return next((dtype for dtype, known in DTYPES.items() if known == name), None)

    def dim(self) -> int:
        """How many axes it has."""
        return len(self.output.get_partial_shape())

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return write(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in FUNCTIONS:
            raise Unwritten(f"{name} of a tensor")
        return lambda *args, **kwargs: write(name, (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        return write(operator.add, (self, other), {})

    def __sub__(self, other: Any) -> Any:
        return write(operator.sub, (self, other), {})

    def __mul__(self, other: Any) -> Any:
        return write(operator.mul, (self, other), {})


def write(function: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The result of a torch function, or of the method of that name, on what is written."""
    known = FUNCTIONS.get(function)
    if known is None:
        raise Unwritten(f"{function}")
    try:
        return known(*args, **kwargs)
    except TypeError as error:  # other arguments than it knows
        raise Unwritten(f"{function}: {error}") from error


def written(module: fx.GraphModule, signature: Signature) -> Any:
    """OpenVINO's model of `module`, whose operators are named after its nodes.

    Raises:
        Unwritten: it has a function that this file does not know.
    """
    import openvino

    run = _Run(flat_module(swapped(module, _Rounding)))
    inputs = [_parameter(spec) for spec in signature.inputs]
    with torch.no_grad():
        outputs = run.run(*(Written(parameter.output(0)) for parameter in inputs))
    results = [_ops().result(_output(value)) for value in outputs]
    return openvino.Model(results, inputs, "model")


class _Run(fx.Interpreter):
    """Writes a graph node by node; what depends on no input is computed."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.named: set[str] = set()

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, its operators named after it."""
        value = super().run_node(n)
        if n.op.startswith("call"):
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, Written):
                    self._name(part.output.get_node(), n.name)
                    # Which stays with the tensor, whatever operators OpenVINO makes of those that wrote it.
                    part.output.get_tensor().add_names({n.name})
        return value

    def _name(self, op: Any, name: str) -> None:
        """Name what was written since the last node."""
        pending = [op]
        while pending:
            op = pending.pop()
            if op.get_name() not in self.named:
                self.named.add(op.get_name())
                if op.get_type_name() not in ("Constant", "Parameter"):
                    if op.get_type_name() != "FakeQuantize":  # which is told apart by what it rounds
                        op.set_friendly_name(f"{name}/{op.get_type_name()}")
                    pending += [op.input_value(i).get_node() for i in range(op.get_input_size())]

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As torch has it where nothing is written yet."""
        given = any(map(_is_written, (*args, *kwargs.values())))
        return write(target, args, kwargs) if given else super().call_function(target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Likewise."""
        given = any(map(_is_written, (*args, *kwargs.values())))
        return write(target, args, kwargs) if given else super().call_method(target, args, kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module's forward writes."""
        module = self.fetch_attr(target)
        return _attended(module, *args) if isinstance(module, SelfAttention) else module(*args, **kwargs)


class _Rounding(nn.Module):
    """Writes what a FakeQuantize does; of parameters, their codes."""

    def __init__(self, fake: FakeQuantize) -> None:
        super().__init__()
        self.step, self.zero_point, self.axis = fake.step, fake.zero_point, fake.axis
        self.low, self.high = int(fake.low), int(fake.high)

    def forward(self, values: Any) -> Written:
        """`values` in the steps of the grid."""
        scale, zero_point = self.step, self.zero_point.float()
        if self.axis is not None:
            shape = [-1 if dim == self.axis else 1 for dim in range(values.dim())]
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        if isinstance(values, Tensor):
            return self._codes(values, scale, zero_point)
        bounds = [_output((code - zero_point) * scale) for code in (self.low, self.high)]
        levels = self.high - self.low + 1
        return Written(_ops().fake_quantize(values.output, *bounds, *bounds, levels).output(0))

    def _codes(self, values: Tensor, scale: Tensor, zero_point: Tensor) -> Written:
        if zero_point.any():
            raise Unwritten("parameters with a zero point")
        codes = (values / scale).clamp_(self.low, self.high).round_()
        codes = codes.to(torch.int8 if self.low < 0 else torch.uint8)
        converted = _ops().convert(_ops().constant(codes.numpy()), "f32")
        return Written(_ops().multiply(converted, _output(scale)).output(0))


def _is_written(value: Any) -> bool:
    return isinstance(value, Written) or (isinstance(value, list | tuple) and any(map(_is_written, value)))


def _ops() -> Any:
    from openvino import opset14

    return opset14


def _parameter(spec: Any) -> Any:
    from openvino import PartialShape, Type

    shape = PartialShape([FREE if size is None else size for size in spec.shape])
    return _ops().parameter(shape, getattr(Type, _element_type(spec.dtype)))


def _element_type(dtype: torch.dtype) -> str:
    if dtype not in DTYPES:
        raise Unwritten(f"tensors of {dtype}")
    return DTYPES[dtype]


def _output(value: Any) -> Any:
    """A tensor as what operators read."""
    if isinstance(value, Written):
        return value.output
    if not isinstance(value, Tensor):
        raise Unwritten(f"a {type(value).__name__} in the place of a tensor")
    _element_type(value.dtype)
    return _ops().constant(value.detach().contiguous().numpy()).output(0)


def _ints(*values: int) -> Any:
    return _ops().constant(np.array(values, np.int64))


def _sizes(values: Sequence[Any]) -> Any:
    """Sizes as what operators read, some of which may be computed."""
    if not any(isinstance(value, Written) for value in values):
        return _ints(*values)
    parts = [
        _ops().reshape(value.output, _ints(1), special_zero=False)
        if isinstance(value, Written)
        else _ints(value)
        for value in values
    ]
    return _ops().concat(parts, 0)


def _listed(values: Sequence[Any]) -> Sequence[Any]:
    """What may be given as one sequence or one by one."""
    return values[0] if len(values) == 1 and isinstance(values[0], list | tuple | torch.Size) else values


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value) * (3 - len(value))


def _axis(x: Written, dim: int) -> int:
    return dim % x.dim()


def _refuse(*unusual: Any) -> None:
    """Only for calls in which these are absent, 0 or False."""
    if any(unusual):
        raise Unwritten(f"an argument {unusual}")


def writes(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what writes these functions, or methods by their names, with their own parameters."""

    def register(body: Callable[..., Any]) -> Callable[..., Any]:
        def returning(*args: Any, **kwargs: Any) -> Any:
            result = body(*args, **kwargs)
            if isinstance(result, list):
                return tuple(map(Written, result))
            return result if isinstance(result, Written | int) else Written(result.output(0))

        FUNCTIONS.update(dict.fromkeys(functions, returning))
        return returning

    return register


# -- pointwise ---------------------------------------------------------------------------------------------------------

UNARY: dict[Any, str] = {
    torch.abs: "abs", torch.acos: "acos", torch.acosh: "acosh", torch.asin: "asin", torch.asinh: "asinh",
    torch.atan: "atan", torch.atanh: "atanh", torch.ceil: "ceil", torch.cos: "cos", torch.cosh: "cosh",
    torch.erf: "erf", torch.exp: "exp", torch.floor: "floor", torch.log: "log", torch.neg: "negative",
    torch.relu: "relu", torch.sigmoid: "sigmoid", torch.sign: "sign", torch.sin: "sin", torch.sinh: "sinh",
    torch.sqrt: "sqrt", torch.tan: "tan", torch.tanh: "tanh", F.hardsigmoid: "hsigmoid", F.hardswish: "hswish",
    F.mish: "mish", F.silu: "swish",
}  # fmt: skip
BINARY: dict[Any, str] = {
    operator.add: "add", operator.sub: "subtract", operator.mul: "multiply", operator.truediv: "divide",
    operator.pow: "power", torch.pow: "power", torch.maximum: "maximum", torch.minimum: "minimum",
}  # fmt: skip


def _unary(name: str) -> Callable[..., Any]:
    def unary(x: Written, inplace: bool = False) -> Any:
        _is_float(x)
        return getattr(_ops(), name)(x.output)

    return unary


def _binary(name: str) -> Callable[..., Any]:
    def binary(a: Any, b: Any) -> Any:
        if name == "multiply" and isinstance(b, int) and isinstance(a, Written) and a.dtype == torch.int64:
            return _ops().multiply(a.output, np.int64(b))
        _is_float(a, b)
        return getattr(_ops(), name)(*map(_float, (a, b)))

    return binary


for _function, _name in UNARY.items():
    writes(_function)(_unary(_name))
for _function, _name in BINARY.items():
    writes(_function)(_binary(_name))


def _is_float(*values: Any) -> None:
    for value in values:
        if isinstance(value, Written) and value.dtype != torch.float32:
            raise Unwritten(f"a function of {value.dtype}")


def _float(value: Any) -> Any:
    """A tensor, or a number, as what meets a tensor of float32."""
    if isinstance(value, bool) or not isinstance(value, int | float | Tensor | Written):
        raise Unwritten(f"a {type(value).__name__} beside a tensor")
    if isinstance(value, int | float):
        return np.float32(value)
    if isinstance(value, Tensor) and value.dtype != torch.float32:
        if value.dim() or value.dtype == torch.bool:
            raise Unwritten(f"a tensor of {value.dtype} beside one of float32")
        value = value.float()  # a number, which takes the dtype of what it meets
    return _output(value)


@writes(F.gelu)
def _gelu(x: Written, approximate: str = "none") -> Any:
    return _ops().gelu(x.output, "tanh" if approximate == "tanh" else "erf")


@writes(F.elu)
def _elu(x: Written, alpha: float = 1.0, inplace: bool = False) -> Any:
    return _ops().elu(x.output, alpha)


@writes(F.leaky_relu)
def _leaky_relu(x: Written, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    return _ops().prelu(x.output, np.array([negative_slope], np.float32))


@writes(torch.prelu)
def _prelu(x: Written, weight: Tensor) -> Any:
    return _ops().prelu(x.output, _output(weight))


@writes(torch.clamp)
def _clamp(x: Written, min: Any = None, max: Any = None) -> Any:
    _is_float(x)
    _refuse(*(isinstance(bound, Tensor | Written) for bound in (min, max)))
    if min is not None and max is not None:
        return _ops().clamp(x.output, float(min), float(max))
    if min is None:
        return _ops().minimum(x.output, np.float32(max))
    return _ops().maximum(x.output, np.float32(min))


@writes(torch.rsqrt)
def _rsqrt(x: Written) -> Any:
    return _ops().divide(np.float32(1), _ops().sqrt(x.output))


@writes(torch.reciprocal)
def _reciprocal(x: Written) -> Any:
    return _ops().divide(np.float32(1), x.output)


# -- products ----------------------------------------------------------------------------------------------------------


@writes(torch.conv2d)
def _conv2d(
    x: Written, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Any:  # fmt: skip
    strides, dilations = _pair(stride), _pair(dilation)
    if isinstance(padding, str):
        raise Unwritten(f"padding {padding!r}")
    pads = _pair(padding)
    weight = _grouped(_output(weight), groups, outputs=0)
    convolution = _ops().convolution if groups == 1 else _ops().group_convolution
    return _biased(convolution(x.output, weight, strides, pads, pads, dilations), bias)


@writes(torch.conv_transpose2d)
def _conv_transpose2d(
    x: Written, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    groups: int = 1, dilation: Any = 1,
) -> Any:  # fmt: skip
    weight, pads = _grouped(_output(weight), groups, outputs=1), _pair(padding)
    convolution = _ops().convolution_backprop_data if groups == 1 else _ops().group_convolution_backprop_data
    found = convolution(
        x.output,
        weight,
        _pair(stride),
        pads_begin=pads,
        pads_end=pads,
        dilations=_pair(dilation),
        auto_pad="EXPLICIT",
        output_padding=_pair(output_padding),
    )
    return _biased(found, bias)


def _grouped(weight: Any, groups: int, outputs: int) -> Any:
    """A weight with an axis of groups in front, if there are any, taken out of its first axis."""
    if groups == 1:
        return weight
    first, *rest = (size.get_length() for size in weight.get_partial_shape())
    return _ops().reshape(weight, _ints(groups, first // groups, *rest), special_zero=False)


def _biased(product: Any, bias: Any) -> Any:
    if bias is None:
        return product
    if not isinstance(bias, Tensor):
        raise Unwritten("a bias that is computed")
    return _ops().add(product, _output(bias.reshape(1, -1, 1, 1)))


@writes(F.linear)
def _linear(x: Written, weight: Any, bias: Any = None) -> Any:
    product = _ops().matmul(_output(x), _output(weight), False, True)
    return product if bias is None else _ops().add(product, _output(bias))


@writes(torch.matmul, "matmul")
def _matmul(a: Any, b: Any) -> Any:
    return _ops().matmul(_output(a), _output(b), False, False)


@writes(F.embedding)
def _embedding(index: Written, weight: Any, padding_idx: Any = None, max_norm: Any = None, norm_type: float = 2.0,
               scale_grad_by_freq: bool = False, sparse: bool = False) -> Any:  # fmt: skip
    _refuse(max_norm)
    return _ops().gather(_output(weight), index.output, _ops().constant(np.int64(0)))


@writes(F.scaled_dot_product_attention)
def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    _refuse(dropout_p, enable_gqa)
    given = [_output(query), _output(key), _output(value)]
    mask = None if attn_mask is None else _output(attn_mask)
    by = None if scale is None else np.float32(scale)
    if mask is None and by is not None:  # which stands behind the mask
        mask = _ops().constant(np.float32(0)).output(0)
    return _ops().scaled_dot_product_attention(*given, mask, by, causal=is_causal)


def _attended(module: SelfAttention, x: Written) -> Any:
    """`nn.MultiheadAttention` on one tensor, (batch, positions, width)."""
    held = module.attention
    qkv = F.linear(x, held.in_proj_weight, held.in_proj_bias)  # type: ignore[arg-type]
    return F.linear(attended(qkv, held.num_heads), held.out_proj.weight, held.out_proj.bias)


# -- normalization and reduction ---------------------------------------------------------------------------------------


@writes(F.batch_norm)
def _batch_norm(x: Written, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
                training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> Any:  # fmt: skip
    _refuse(training, weight is None, bias is None)
    held = map(_output, (weight, bias, running_mean, running_var))
    return _ops().batch_norm_inference(x.output, *held, eps)


@writes(F.layer_norm)
def _layer_norm(
    x: Written, normalized_shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Any:
    found = _ops().mvn(x.output, _ints(*range(-len(normalized_shape), 0)), True, eps, "INSIDE_SQRT")
    if weight is not None:
        found = _ops().multiply(found, _output(weight))
    return found if bias is None else _ops().add(found, _output(bias))


@writes(F.group_norm)
def _group_norm(x: Written, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    _refuse(weight is None, bias is None)
    return _ops().group_normalization(x.output, _output(weight), _output(bias), num_groups, eps)


@writes(F.softmax)
def _softmax(x: Written, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Any:
    _refuse(dtype)
    return _ops().softmax(x.output, _axis(x, dim))


@writes(F.log_softmax)
def _log_softmax(x: Written, dim: int, _stacklevel: int = 3, dtype: Any = None) -> Any:
    _refuse(dtype)
    return _ops().log_softmax(x.output, _axis(x, dim))


REDUCTIONS: dict[Any, str] = {
    torch.mean: "reduce_mean", "mean": "reduce_mean", torch.sum: "reduce_sum", torch.amax: "reduce_max",
    torch.amin: "reduce_min",
}  # fmt: skip


def _reduction(name: str) -> Callable[..., Any]:
    def reduction(x: Written, dim: Any, keepdim: bool = False) -> Any:
        _is_float(x)
        axes = _ints(*(_axis(x, d) for d in ([dim] if isinstance(dim, int) else dim)))
        return getattr(_ops(), name)(x.output, axes, keepdim)

    return reduction


for _function, _name in REDUCTIONS.items():
    writes(_function)(_reduction(_name))


# -- pools -------------------------------------------------------------------------------------------------------------


@writes(F.max_pool2d)
def _max_pool2d(x: Written, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                ceil_mode: bool = False, return_indices: bool = False) -> Any:  # fmt: skip
    _refuse(return_indices)
    kernel, pads = _pair(kernel_size), _pair(padding)
    rounding = "ceil_torch" if ceil_mode else "floor"
    return _ops().max_pool(
        x.output, _pair(stride or kernel), _pair(dilation), pads, pads, kernel, rounding, axis=2
    )


@writes(F.avg_pool2d)
def _avg_pool2d(x: Written, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
                count_include_pad: bool = True, divisor_override: Any = None) -> Any:  # fmt: skip
    _refuse(divisor_override)
    kernel, pads = _pair(kernel_size), _pair(padding)
    rounding = "ceil_torch" if ceil_mode else "floor"
    return _ops().avg_pool(
        x.output, _pair(stride or kernel), pads, pads, kernel, not count_include_pad, rounding
    )


@writes(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x: Written, output_size: Any) -> Any:
    sizes = _pair(output_size)
    if sizes == [1, 1]:
        return _ops().reduce_mean(x.output, _ints(-1, -2), True)
    return _ops().adaptive_avg_pool(x.output, _ints(*sizes))


# -- movement ----------------------------------------------------------------------------------------------------------


@writes(torch.reshape, "reshape", "view")
def _reshape(x: Written, *shape: Any) -> Any:
    sizes = _listed(shape)
    if sum(size == FREE for size in sizes if isinstance(size, int)) > 1:
        raise Unwritten("a reshape to more than one size that is not known")
    return _ops().reshape(x.output, _sizes(sizes), special_zero=False)


@writes(torch.flatten, "flatten")
def _flatten(x: Written, start_dim: int = 0, end_dim: int = -1) -> Any:
    first, last, shape = _axis(x, start_dim), _axis(x, end_dim), x.shape
    middle = shape[first : last + 1]
    return _reshape(x, (*shape[:first], FREE if FREE in middle else math.prod(middle), *shape[last + 1 :]))


@writes(torch.permute, "permute")
def _permute(x: Written, *dims: Any) -> Any:
    return _ops().transpose(x.output, _ints(*(_axis(x, d) for d in _listed(dims))))


@writes(torch.transpose, "transpose")
def _transpose(x: Written, dim0: int, dim1: int) -> Any:
    order = list(range(x.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return _ops().transpose(x.output, _ints(*order))


@writes(torch.narrow, "narrow")
def _narrow(x: Written, dim: int, start: int, length: int) -> Any:
    return _sliced(x, dim, start, start + length)


@writes(torch.ops.aten.slice.Tensor)
def _sliced(x: Written, dim: int, start: int, end: int, step: int = 1) -> Any:
    bounds = (_ints(value) for value in (start, end, step, _axis(x, dim)))
    return _ops().slice(x.output, *bounds)


@writes("unbind", torch.unbind)
def _unbind(x: Written, dim: int = 0) -> Any:
    axis = _ops().constant(np.int64(_axis(x, dim)))
    parts = _ops().split(x.output, axis, x.shape[dim])
    return [_ops().squeeze(part, axis).output(0) for part in parts.outputs()]


@writes(operator.getitem)
def _part(parts: Any, index: int) -> Any:
    if not isinstance(parts, tuple):
        raise Unwritten("an index into a tensor")
    return parts[index]


@writes(torch.cat)
def _cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    given = list(map(_output, tensors))
    if len({str(each.get_element_type()) for each in given}) > 1:
        raise Unwritten("a concatenation of several dtypes")
    return _ops().concat(given, dim % len(given[0].get_partial_shape()))


@writes(torch.roll)
def _roll(x: Written, shifts: Any, dims: Any = None) -> Any:
    _refuse(dims is None)
    shifts, dims = ([value] if isinstance(value, int) else value for value in (shifts, dims))
    return _ops().roll(x.output, _ints(*shifts), _ints(*(_axis(x, d) for d in dims)))


@writes(F.pad)
def _pad(x: Written, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    modes = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    if mode not in modes:
        raise Unwritten(f"padding {mode!r}")
    _is_float(x)
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, width in enumerate(pad):
        (after if place % 2 else before)[-1 - place // 2] = width
    filler = np.float32(value or 0) if mode == "constant" else None
    return _ops().pad(x.output, _ints(*before), _ints(*after), modes[mode], filler)


@writes(F.interpolate)
def _interpolate(x: Written, size: Any = None, scale_factor: Any = None, mode: str = "nearest",
                 align_corners: bool | None = None, recompute_scale_factor: Any = None,
                 antialias: bool = False) -> Any:  # fmt: skip
    _refuse(size is None, scale_factor, recompute_scale_factor, antialias, x.dim() != 4)
    modes = {"nearest": "nearest", "bilinear": "linear_onnx", "bicubic": "cubic"}
    if mode not in modes:
        raise Unwritten(f"interpolation {mode!r}")
    corners = "align_corners" if align_corners else "pytorch_half_pixel"
    return _ops().interpolate(
        x.output, _ints(*_pair(size)), modes[mode], "sizes", nearest_mode="floor", axes=_ints(2, 3),
        coordinate_transformation_mode="asymmetric" if mode == "nearest" else corners,
    )  # fmt: skip


@writes("expand")
def _expand(x: Any, *shape: Any) -> Any:
    return _ops().broadcast(
        _output(x), _sizes([1 if s == FREE else s for s in _listed(shape)]), broadcast_spec="BIDIRECTIONAL"
    )


@writes("size")
def _size(x: Written, dim: int) -> Any:
    known = x.shape[dim]
    if known != FREE:
        return known
    return _ops().gather(_ops().shape_of(x.output), _ints(_axis(x, dim)), _ops().constant(np.int64(0)))
