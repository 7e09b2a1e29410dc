"""The tensor language: each operator declared once, with its meaning, shape rule, import and features.

Operators of other packages are modules registered under the entry-point group `eqsat_deploy.operators`, imported here.
"""

from eqsat_deploy.language import composed as composed
from eqsat_deploy.language import volumes as volumes
from eqsat_deploy.language.attention import (
    attention,
    causal_attention,
    masked_attention,
    packed_attention,
    self_attention,
)  # fmt: skip
from eqsat_deploy.language.casting import cast
from eqsat_deploy.language.expressions import (
    Expr,
    Guard,
    broadcast,
    dims,
    gather,
    maximum,
    minimum,
    numel,
    power,
    replace,
    vec,
)  # fmt: skip
from eqsat_deploy.language.indexing import take
from eqsat_deploy.language.leaves import (
    identity_matrix,
    input_,
    ones,
    opaque,
    parameter,
    result,
    scalar,
    zeros,
)
from eqsat_deploy.language.linear import conv2d, conv_transpose2d, embedding, linear, matmul
from eqsat_deploy.language.logic import compare, mask_bias, where
from eqsat_deploy.language.movement import (
    concat,
    concat_all,
    expand,
    pad,
    pad_edges,
    permute,
    reshape,
    roll,
    slice_,
)  # fmt: skip
from eqsat_deploy.language.normalization import (
    batch_norm,
    channel_norm,
    group_norm,
    layer_norm,
    log_softmax,
    reduce_,
    rms_norm,
    softmax,
    standardize,
)
from eqsat_deploy.language.operator import BY_CONSTRUCTOR, IMPORTERS, OPERATORS, Operator, aten, operator
from eqsat_deploy.language.pointwise import add, binary, div, mul, relu, sub, unary
from eqsat_deploy.language.pooling import adaptive_avg_pool2d, avg_pool2d, max_pool2d
from eqsat_deploy.language.resampling import fold, resize, unfold
from eqsat_deploy.language.shapes import BATCH, SLOTS, batch_size, decode, encode
from eqsat_extraction.registry import Registry

__all__ = [
    "BATCH", "BY_CONSTRUCTOR", "IMPORTERS", "OPERATORS", "SLOTS", "Expr", "Guard", "Operator",
    "adaptive_avg_pool2d", "add", "aten", "attention", "avg_pool2d", "batch_norm", "batch_size", "binary",
    "broadcast", "cast", "causal_attention", "channel_norm", "compare", "concat", "concat_all", "conv2d",
    "conv_transpose2d",
    "decode", "dims", "div", "embedding", "encode", "expand", "fold", "gather", "group_norm", "identity_matrix",
    "input_", "layer_norm", "linear", "log_softmax", "mask_bias", "masked_attention", "matmul", "max_pool2d",
    "maximum", "minimum", "mul", "numel", "ones", "opaque", "operator", "packed_attention", "pad", "pad_edges",
    "parameter", "permute", "power", "reduce_", "relu", "replace", "reshape", "resize", "result", "rms_norm",
    "roll", "scalar", "self_attention", "slice_", "softmax", "standardize", "sub", "take", "unary", "unfold",
    "vec", "where", "zeros",
]  # fmt: skip

OTHERS: Registry[object] = Registry(
    "eqsat_deploy.operators",
    "module of operators",
    lambda found: True,
    "to declare operators when it is imported",
)
for _name in OTHERS.entries():
    OTHERS.find(_name)
