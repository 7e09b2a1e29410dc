"""Multi-head attention and its parts."""

from eqsat_deploy.language import linear, packed_attention, power, self_attention
from eqsat_deploy.rules import Equation, Term, integer, rule


@rule("real", x="n s d", in_w="3*d d", in_b="3*d", out_w="d d", out_b="d", d=(4, 8), heads=integer(1, 2, 4))
def self_attention_in_three_parts(
    x: Term, in_w: Term, in_b: Term, out_w: Term, out_b: Term, heads: Term, d: Term
) -> Equation:
    """Self-attention is a packed in-projection, attention between the heads, and an out-projection."""
    attended = packed_attention(linear(x, in_w, in_b), heads, power(d // heads, -0.5))
    return self_attention(x, in_w, in_b, out_w, out_b, heads), linear(attended, out_w, out_b)
