"""Torch's core ATen operators: each is one of the language, or known to stay whole, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from eqsat_deploy.language import IMPORTERS

TRAINING = "a gradient: models are optimized in eval mode"
RANDOM = "draws random numbers: two calls are never the same value"
NUMBER = "a number, read as a multiple of the batch or as it is"
CONSTANT = "a constant, evaluated once; of the size of the batch it is written when the model runs"
INDICES = "its places are data: no rule knows them, and no neighbour reads them in INT8"
SPECTRUM = "complex numbers, which no engine and no dtype of the language has"
SIZES = "the size of its result is known only when the model runs"
STRIDES = "reads memory by strides, which rewriting changes"
WRITES = "writes elements at places that are data"

WHOLE = {
    "_adaptive_avg_pool2d_backward.default": TRAINING,
    "_adaptive_avg_pool3d.default": "means over windows of several sizes of a volume",
    "_cdist_forward.default": "distances of all pairs, with a norm that is an argument",
    "_embedding_bag.default": "bags of sizes that are data",
    "_fft_c2r.default": SPECTRUM,
    "_fft_r2c.default": SPECTRUM,
    "_local_scalar_dense.default": SIZES,
    "_native_batch_norm_legit.default": "statistics of the batch, and running ones that change",
    "_native_batch_norm_legit.no_stats": "statistics of the batch",
    "_pdist_forward.default": "distances of all pairs, with a norm that is an argument",
    "arange.start_step": CONSTANT,
    "argmax.default": INDICES,
    "argmin.default": INDICES,
    "as_strided.default": STRIDES,
    "atan2.out": "writes to a tensor that it is given; capture makes it atan2",
    "avg_pool2d_backward.default": TRAINING,
    "convolution_backward.default": TRAINING,
    "diagonal.default": STRIDES,
    "embedding_dense_backward.default": TRAINING,
    "empty.memory_format": "has no values",
    "empty_strided.default": "has no values",
    "grid_sampler_2d.default": "reads an image at places that are data, and between them",
    "index_put.default": WRITES,
    "masked_scatter.default": WRITES,
    "max_pool2d_with_indices_backward.default": TRAINING,
    "native_group_norm_backward.default": TRAINING,
    "native_layer_norm_backward.default": TRAINING,
    "nonzero.default": SIZES,
    "prod.default": "a product of elements, which no engine reduces by in INT8 and no rule knows",
    "prod.dim_int": "a product of elements, which no engine reduces by in INT8 and no rule knows",
    "rand.default": RANDOM,
    "randn.default": RANDOM,
    "randperm.default": RANDOM,
    "reflection_pad3d.default": "edges of a volume, of which engines have only those of images",
    "replication_pad3d.default": "edges of a volume, of which engines have only those of images",
    "scalar_tensor.default": CONSTANT,
    "scatter.src": WRITES,
    "scatter.value": WRITES,
    "scatter_add.default": WRITES,
    "scatter_reduce.two": WRITES,
    "sort.default": INDICES,
    "sym_numel.default": NUMBER,
    "sym_size.int": NUMBER,
    "sym_storage_offset.default": NUMBER,
    "sym_stride.int": NUMBER,
    "topk.default": INDICES,
}


def core() -> Iterator[str]:
    """Core overloads, `name.overload`."""
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        for overload in packet.overloads() if hasattr(packet, "overloads") else ():
            if torch.Tag.core in getattr(packet, overload).tags:
                yield f"{name}.{overload}"


CORE = sorted(core())


def test_the_list_of_core_operators_is_read_from_torch():
    assert len(CORE) > 150
    assert {"convolution.default", "relu.default", "add.Tensor"} <= set(CORE)


@pytest.mark.parametrize("name", CORE)
def test_a_core_operator_is_imported_or_stays_whole_with_a_reason(name):
    imported, whole = name in IMPORTERS, name in WHOLE
    assert imported or whole, f"aten.{name} is neither imported nor listed in WHOLE"
    assert not (imported and whole), f"aten.{name} is imported: take it out of WHOLE"


def test_what_stays_whole_is_core():
    assert WHOLE.keys() <= set(CORE)
