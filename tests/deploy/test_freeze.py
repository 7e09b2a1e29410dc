from __future__ import annotations

import pytest
import torch
from torch import nn

from eqsat_deploy.kernels import ENode
from eqsat_deploy.language import batch_norm, concat_all
from tests.support.models import Residual, Transformer, image, randomized
from tests.support.stages import space


def test_a_constant_is_one_free_leaf_with_a_term_that_computes_it():
    found = space(randomized(Residual()), image())
    for number, known in enumerate(found.classes):
        if known.constant:
            assert number in found.terms
            kinds = {n.operator.name for c, n in found.choices if c == number}
            assert kinds == {"constant"}


def test_constant_terms_have_no_cycles():
    found = space(randomized(Transformer()), image())

    def depth(number: int, seen: tuple[int, ...] = ()) -> int:
        assert number not in seen
        return 1 + max((depth(o, (*seen, number)) for o in found.terms[number].operands), default=0)

    assert max(depth(number) for number in found.terms) > 1


def test_the_model_s_own_nodes_are_in_their_classes():
    found = space(randomized(Residual()), image())
    assert found.original <= set(found.nodes)


def test_every_class_has_a_shape_and_a_dtype():
    found = space(randomized(Transformer()), image())
    for number, node in found.nodes:
        known = found.classes[number]
        assert known.shape is not None, node
        assert known.dtype is not None, node


def test_integer_classes_stand_for_a_float_class_and_are_never_its_equal():
    found = space(randomized(Residual()), image())
    integer = [c for c in found.classes if c.quantized_of is not None]
    assert integer
    for known in integer:
        source = found.classes[known.quantized_of]
        assert known.dtype == torch.int8
        assert source.dtype == torch.float32
        assert source.shape == known.shape


def test_choices_are_sorted_and_unique():
    found = space(randomized(Residual()), image())
    keys = [(number, node.sort_key) for number, node in found.choices]
    assert keys == sorted(keys)
    assert len(set(found.choices)) == len(found.choices)


def test_a_concatenation_on_codes_reads_the_codes_of_every_part():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(3))
            self.last = nn.Conv2d(12, 2, 1)

        def forward(self, x):
            return self.last(torch.cat([torch.relu(layer(x)) for layer in self.layers], 1))

    found = space(randomized(Three()), image())
    integer = [(c, n) for c, n in found.choices if n.operator is concat_all and n.integer]
    assert max(len(node.operands) for _, node in integer) == 3
    for number, node in integer:
        parts = [found.classes[o].quantized_of for o in node.operands]
        assert None not in parts
        whole = found.classes[number].quantized_of
        joined = ENode(concat_all, node.operator.join(tuple(parts), node.attributes))
        assert (whole, joined) in found.choices


class Normed(nn.Module):
    """A BatchNorm of a convolution, or of a concatenation of two, that a convolution reads."""

    def __init__(self, parts):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(parts))
        self.norm, self.last = nn.BatchNorm2d(4 * parts), nn.Conv2d(4 * parts, 2, 1)

    def forward(self, x):
        parts = [layer(x) for layer in self.layers]
        return self.last(torch.relu(self.norm(torch.cat(parts, 1) if len(parts) > 1 else parts[0])))


@pytest.mark.parametrize(("parts", "reads"), [(1, False), (2, True)])
def test_a_batch_norm_reads_codes_of_concatenations_but_never_those_of_a_convolution(parts, reads):
    found = space(randomized(Normed(parts)), image())
    integer = [node for _, node in found.choices if node.operator is batch_norm and node.integer]
    assert bool(integer) == reads
    assert all(found.classes[o].constant for node in integer for o in node.operands[1:])
