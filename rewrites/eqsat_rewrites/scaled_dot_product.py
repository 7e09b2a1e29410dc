"""Attention between its projections as scaled dot products over slices."""

from eqsat_deploy.language import attention, dims, packed_attention, permute, power, reshape, slice_
from eqsat_deploy.rules import Equation, Term, integer, rule

HEADS_FIRST = (0, 1, 2, 3, 5, 4, 6)


@rule("real", qkv="n s 3*d", d=(4, 8), heads=integer(1, 2, 4))
def packed_attention_as_scaled_dot_product(qkv: Term, heads: Term, n: Term, s: Term, d: Term) -> Equation:
    """Packed attention slices queries, keys and values apart and attends per head (Vaswani et al. 2017, 3.2.2)."""

    def part(index: Term) -> Term:
        cut = slice_(qkv, 6, index * d, (index + 1) * d, 1)
        return permute(reshape(cut, dims(n, s, heads, d // heads)), HEADS_FIRST)

    attended = attention(part(0), part(1), part(2), power(d // heads, -0.5))
    return packed_attention(qkv, heads), reshape(permute(attended, HEADS_FIRST), dims(n, s, d))
