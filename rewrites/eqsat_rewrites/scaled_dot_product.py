"""Attention between its projections: as scaled dot products, recognized from their chain, masks merged.

Engines have one kernel for softmax(scale * q @ k.T + mask) @ v, so that is the form to reach; the scale, the masks and
the windows that stand between its products in a model's code are moved out of the way.
"""

import sys
from typing import Any

from eqsat_deploy.language import (
    add,
    attention,
    broadcast,
    cast,
    compare,
    dims,
    encode,
    expand,
    gather,
    linear,
    masked_attention,
    matmul,
    maximum,
    mul,
    ones,
    packed_attention,
    permute,
    replace,
    reshape,
    scalar,
    slice_,
    softmax,
    vec,
    where,
    zeros,
)  # fmt: skip
from eqsat_deploy.rules import (
    Equation,
    Term,
    Variants,
    boolean,
    commutative,
    constant,
    fixed,
    function,
    integer,
    integers,
    name,
    number,
    optional,
    rule,
    rules,
    shape,
)
from eqsat_rewrites.layout import TRANSPOSED

HEADS_FIRST = (0, 1, 2, 3, 5, 4, 6)


@rule("real", qkv="n s 3*d", d=(4, 8), heads=integer(1, 2, 4), scale=number(0.5, 1.0))
def packed_attention_as_scaled_dot_product(
    qkv: Term, heads: Term, scale: Term, n: Term, s: Term, d: Term
) -> Equation:
    """Packed attention slices queries, keys and values apart and attends per head (Vaswani et al. 2017, 3.2.2)."""

    def part(index: Term) -> Term:
        cut = slice_(qkv, 6, index * d, (index + 1) * d, 1)
        return permute(reshape(cut, dims(n, s, heads, d // heads)), HEADS_FIRST)

    attended = attention(part(0), part(1), part(2), scale)
    return packed_attention(qkv, heads, scale), reshape(permute(attended, HEADS_FIRST), dims(n, s, d))


# -- the chain of products ---------------------------------------------------------------------------------

CHAIN: dict[str, Any] = {"q": "... s e", "t": "... e k", "v": "... k f"}
SCORES: dict[str, Any] = {"q": "... s e", "t": "... e k"}
NUMBERS = number(0.5, 2.0)


def of_one_rank(first: Term, *others: Term) -> list[Any]:
    """Guards: as attention kernels want them, with batch and heads in front."""
    return [shape(first)[0] >= 3, *(shape(other)[0] == shape(first)[0] for other in others)]


def fits(mask: Any, q: Any, k: Any, keys: Any) -> list[Any]:
    """Guards on shapes: a mask broadcasts to the scores of queries and `keys` keys, not the other way round."""
    ahead = (maximum(q[i], k[i]) >= mask[i] for i in range(1, 5))
    return [mask[0] >= 2, mask[0] <= q[0], *ahead, q[5] >= mask[5], keys >= mask[6]]


def fits_scores(mask: Term, q: Term, t: Term) -> list[Any]:
    """Guards: `mask`, if there is one, broadcasts to q @ t."""
    return [] if mask is None else fits(shape(mask), shape(q), shape(t), shape(t)[6])


def fits_keys(mask: Term, q: Term, k: Term) -> list[Any]:
    """Guards: `mask`, if there is one, broadcasts to the scores of queries and keys."""
    return [] if mask is None else fits(shape(mask), shape(q), shape(k), shape(k)[5])


def _attention(q: Term, k: Term, v: Term, mask: Term, scale: Term) -> Term:
    return attention(q, k, v, scale) if mask is None else masked_attention(q, k, v, mask, scale)


@rules("real", **CHAIN, m=optional("~ s k", "masked-"))
def chain_is_attention(q: Term, t: Term, v: Term, m: Term) -> Equation:
    """Product, softmax, product is attention (Vaswani et al. 2017, equation 1); with a mask, or a bias of relative
    positions, added to the scores it is masked attention."""
    scores = matmul(q, t) if m is None else add(matmul(q, t), m)
    return matmul(softmax(scores, 6), v), _attention(q, permute(t, TRANSPOSED), v, m, 1.0), [
        *of_one_rank(q, t, v), *fits_scores(m, q, t),
    ]  # fmt: skip


@rule("real", **CHAIN, scale=NUMBERS)
def attention_beside_its_weights(q: Term, t: Term, v: Term, scale: Term) -> Equation:
    """Where the weights of attention are computed anyway, it is their product with the values."""
    weights = softmax(matmul(mul(q, scalar(scale)), t), 6)
    product = (attention(q, permute(t, TRANSPOSED), v, scale), matmul(weights, v))
    return product, (weights, weights), of_one_rank(q, t, v)


@rule("real", x="~ a s k", m="~ s k", p="~ s k")
def masks_of_scores_merge(x: Term, m: Term, p: Term) -> Equation:
    """Two masks added to scores are one; constants, as a bias of positions and a window's mask, merge for good."""
    within = [shape(x)[i] >= shape(mask)[i] for mask in (m, p) for i in range(7)]
    return softmax(add(add(x, m), p), 6), softmax(add(x, add(m, p)), 6), within


# -- the scale ---------------------------------------------------------------------------------------------


def scales_rows(c: Term, q: Term) -> list[Any]:
    """Guards: a constant factor that `q` broadcasts, and alike for all of a row of the scores."""
    ahead = (shape(q)[i] >= shape(c)[i] for i in range(1, 6))
    return [constant(c), shape(c)[0] <= shape(q)[0], shape(c)[6] == 1, *ahead]


@rules("real", **SCORES, c="~ 1", m=optional("~ s k", "-under-mask"))
def scaled_scores_are_of_scaled_queries(q: Term, t: Term, c: Term, m: Term) -> Equation:
    """Scores are scaled by scaling the queries, which are fewer numbers."""
    scores = mul(matmul(q, t), c), matmul(mul(q, c), t)
    left, right = (softmax(score if m is None else add(score, m), 6) for score in scores)
    return left, right, scales_rows(c, q)


QKV: dict[str, Any] = {
    "q": "... s e",
    "k": "... t e",
    "v": "... t f",
    "scale": NUMBERS,
    "factor": number(0.25, 3.0),
}


@rules("real", order=commutative("-queries", "-keys"), m=optional("~ s t", "-under-mask"), **QKV)
def scaled(q: Term, k: Term, v: Term, m: Term, scale: Term, factor: Term, order: Any) -> Equation:
    """A factor of the queries, or of the keys, is part of the scale, which a mask is added after."""
    first, second = order(q, k)
    queries, keys = order(mul(first, scalar(factor)), second)
    return _attention(queries, keys, v, m, scale), _attention(q, k, v, m, factor * scale), fits_keys(m, q, k)


# -- masks -------------------------------------------------------------------------------------------------

ATTENDS: dict[str, Any] = {"q": "n h s e", "k": "n h t e", "v": "n h t f", "scale": NUMBERS}


MASK = integers(lambda d: [encode((d["s"], d["t"])), encode((d["n"], 1, 1, d["t"]))])
REPEATED_MASK = Variants(
    {"": fixed(None), "expanded-": integers(lambda d: [encode((d["n"], 1, d["s"], d["t"]))])}
)


def _repeated(mask: Term, to: Term) -> Term:
    return mask if to is None else expand(mask, to)


@rules("exact", **ATTENDS, kept=MASK, to=REPEATED_MASK)
def mask_of_nothing(q: Term, k: Term, v: Term, kept: Term, to: Term, scale: Term) -> Equation:
    """A mask that keeps all is none, however many samples it is repeated for."""
    masked = masked_attention(q, k, v, _repeated(ones(kept, "bool"), to), scale)
    return (
        masked,
        attention(q, k, v, scale),
        fits(kept if to is None else to, shape(q), shape(k), shape(k)[5]),
    )


@rule("exact", **ATTENDS, m="~ 1 1 s 1", to=integers(lambda d: [encode((d["n"], 1, d["s"], d["t"]))]))
def mask_for_every_sample(q: Term, k: Term, v: Term, m: Term, to: Term, scale: Term) -> Equation:
    """A mask repeated for every sample and head is broadcast."""
    once = vec(to[0], *(shape(m)[i] for i in range(1, 5)), to[5], to[6])
    masked = masked_attention(q, k, v, expand(m, to), scale)
    return (
        masked,
        masked_attention(q, k, v, expand(m, once), scale),
        fits(to, shape(q), shape(k), shape(k)[5]),
    )


@rules("exact", **ATTENDS, mask=MASK, to=REPEATED_MASK, dt=name("float64"))
def mask_of_zeros(q: Term, k: Term, v: Term, mask: Term, to: Term, dt: Term, scale: Term) -> Equation:
    """Zeros added to the scores are none, however often they are repeated; as booleans they would keep nothing."""
    masked = masked_attention(q, k, v, _repeated(zeros(mask, dt), to), scale)
    return masked, attention(q, k, v, scale), [
        dt != "bool", *fits(mask if to is None else to, shape(q), shape(k), shape(k)[5]),
    ]  # fmt: skip


# Heads of queries that share one head of keys and values (Ainslie et al. 2023), which a model repeats for each of them.
REPEATS = integers(lambda d: [encode((d["n"], d["g"], d["h"] // d["g"], d["t"], d["e"]))])
GROUPED: dict[str, Any] = {
    "q": "n h s e", "k": "n g t e", "v": "n g t f", "scale": NUMBERS, "five": REPEATS, "h": (4, 6), "g": (1, 2),
}  # fmt: skip


def repeated(x: Term, five: Term) -> Term:
    """Each head of `x` as often as the fourth axis of `five` says, side by side."""
    n, g, r, t, e = (five[i] for i in range(2, 7))
    return reshape(expand(reshape(x, dims(n, g, 1, t, e)), five), dims(n, g * r, t, e))


def of_one_head(q: Term, g: Term, n: Term, h: Term, s: Term, e: Term) -> Term:
    """The queries of all heads that share keys, as positions of one head."""
    return reshape(q, dims(n, g, h // g * s, e))


def _shared(five: Term, n: Term, g: Term, h: Term, t: Term, e: Term) -> list[Any]:
    return [five[0] == 5, five[2] == n, five[3] == g, five[4] == h // g, five[5] == t, five[6] == e]


@rules("real", **GROUPED, m=optional("b 1 1 t", "-under-padding"))
def shared_keys_are_not_repeated(
    q: Term, k: Term, v: Term, m: Term, scale: Term, five: Term,
    n: Term, h: Term, g: Term, s: Term, t: Term, e: Term, f: Term,
) -> Equation:  # fmt: skip
    """Queries that attend to the same keys and values do so as positions of one head; a mask of keys alone is one for
    the queries of all heads."""
    whole = _attention(q, repeated(k, five), repeated(v, replace(five, 6, f)), m, scale)
    attended = _attention(of_one_head(q, g, n, h, s, e), k, v, m, scale)
    no_larger = [] if m is None else [n >= shape(m)[3]]
    return whole, reshape(attended, dims(n, h, s, f)), [*_shared(five, n, g, h, t, e), *no_larger]


@rule("real", **GROUPED, m="b 1 s t", b=(1, 2))
def shared_keys_under_mask_are_not_repeated(
    q: Term, k: Term, v: Term, m: Term, scale: Term, five: Term,
    n: Term, h: Term, g: Term, s: Term, t: Term, e: Term, f: Term, b: Term,
) -> Equation:  # fmt: skip
    """The mask is repeated instead of keys and values: once for each head whose queries are now positions."""
    whole = masked_attention(q, repeated(k, five), repeated(v, replace(five, 6, f)), m, scale)
    mask = reshape(expand(m, dims(b, h // g, s, t)), dims(b, 1, h // g * s, t))
    attended = masked_attention(of_one_head(q, g, n, h, s, e), k, v, mask, scale)
    return whole, reshape(attended, dims(n, h, s, f)), [*_shared(five, n, g, h, t, e), n >= b]


@rule("exact", **ATTENDS, m="~ n 1 1 t", to=integers(lambda d: [encode((d["n"], 1, d["s"], d["t"]))]))
def mask_for_every_query(q: Term, k: Term, v: Term, m: Term, to: Term, scale: Term) -> Equation:
    """A mask repeated for every query, as one of padding is, is broadcast."""
    masked = masked_attention(q, k, v, expand(m, to), scale)
    return masked, masked_attention(q, k, v, m, scale), [
        shape(m)[0] == to[0], shape(m)[5] == 1, *fits(to, shape(q), shape(k), shape(k)[5]),
        *(shape(m)[i] == to[i] for i in (1, 2, 3, 4, 6)),
    ]  # fmt: skip


# What a mask removes is -inf in the scores, written over them or added. Less than the least number there is: a mask
# that writes the least number itself over all of a row makes all its weights equal, and added it does not.
LOWEST: dict[str, Any] = {"x": "~ a s k", "lowest": number(-float("inf")), "dt": name("float64")}
FILLED = Variants({
    "removed-": function(lambda fill, x, c: where(c, fill, x), removed=boolean("~ s k", somewhere=False)),
    "kept-": function(lambda fill, x, c: where(c, x, fill), kept=boolean("~ s k", somewhere=True)),
})  # fmt: skip


@rules("real", filled=FILLED, **LOWEST)
def scores_are_masked(filled: Any, x: Term, lowest: Term, dt: Term) -> Equation:
    """Writing -inf over scores is adding it to them, and zero to the others."""
    fill = cast(scalar(lowest), dt)
    mask = filled(fill, cast(scalar(0.0), dt))
    return softmax(filled(fill, x), 6), softmax(add(x, mask), 6), [lowest < -sys.float_info.max]


CONDITION = integers(lambda d: [encode((d["s"], d["k"])), encode((d["s"], 1))])
CHOICE: dict[str, Any] = {"condition": CONDITION, "a": "~ s 1", "b": "~ n s k"}


@rules("exact", holds=Variants({"-first": fixed((ones, 0)), "-second": fixed((zeros, 1))}), **CHOICE)
def choice_of_the(holds: Any, condition: Term, a: Term, b: Term) -> Equation:
    """A condition that holds everywhere chooses the first, one that holds nowhere the second."""
    made, chosen = holds
    to = broadcast(condition, broadcast(shape(a), shape(b)))
    return where(made(condition, "bool"), a, b), expand((a, b)[chosen], to)


@rule(
    "exact",
    kept=boolean("~ s 1"),
    to=integers(lambda d: [encode((d["n"], d["s"], d["k"]))]),
    a="~ s 1",
    b="~ n s k",
)
def choice_for_every_sample(kept: Term, to: Term, a: Term, b: Term) -> Equation:
    """A choice between numbers that is repeated, as for every sample, is made once."""
    chosen = expand(where(kept, a, b), broadcast(to, broadcast(shape(a), shape(b))))
    return where(expand(kept, to), a, b), chosen, [constant(a), constant(b)]


@rule("exact", ones_of=CONDITION, kept=boolean("~ a s k"))
def condition_and_true(ones_of: Term, kept: Term) -> Equation:
    """A condition and one that always holds are the first."""
    both = compare("and", ones(ones_of, "bool"), kept)
    return both, expand(kept, broadcast(ones_of, shape(kept)))


# Attention in windows (Liu et al. 2021): the windows of an image stand in the batch, image by image, and each has a
# mask of its own. As further heads, their masks are one constant.
WINDOWS: dict[str, Any] = {"m": "1 w g s t", "w": (2, 3), "g": (1, 2), "h": (2,), "s": (2, 3), "t": (2, 3)}
REPEATED = integers(
    lambda d: [encode((d["b"] // d["w"], d["w"], i, d["s"], d["t"])) for i in (d["g"], d["h"])]
)


@rule("exact", x="b h s t", b=(6, 12), five=REPEATED, **WINDOWS)
def mask_of_windows(
    x: Term, m: Term, five: Term, b: Term, w: Term, g: Term, h: Term, s: Term, t: Term
) -> Equation:
    """Scores taken apart into windows to add a mask to each are added the masks repeated for every image."""
    repeated = reshape(expand(m, replace(five, 4, g)), dims(b, g, s, t))
    apart = [five[0] == 5, five[3] == w, five[4] == h, five[5] == s, five[6] == t]
    return reshape(add(reshape(x, five), m), dims(b, h, s, t)), add(x, repeated), [constant(m), *apart]


@rule(
    "exact", c="1... h s t", five=integers(lambda d: [encode((2, d["w"], d["g"], d["s"], d["t"]))]), **WINDOWS
)
def bias_in_mask_of_windows(
    m: Term, c: Term, five: Term, w: Term, g: Term, h: Term, s: Term, t: Term
) -> Equation:
    """A bias of positions added to the masks repeated for every image is added to the masks once."""
    repeated = reshape(expand(m, five), dims(five[2] * w, g, s, t))
    biased = expand(add(m, reshape(c, dims(1, 1, h, s, t))), replace(five, 4, maximum(g, h)))
    return add(repeated, c), reshape(biased, dims(five[2] * w, maximum(g, h), s, t)), [
        constant(m), constant(c), five[0] == 5, five[3] == w, five[4] == g, shape(c)[0] <= 4,
    ]  # fmt: skip


@rule("exact", q="b h s e", k="b h t e", v="b h t f", scale=NUMBERS, b=(6, 12), five=REPEATED, **WINDOWS)
def windows_as_heads(
    q: Term, k: Term, v: Term, m: Term, five: Term, scale: Term, b: Term, w: Term, g: Term, h: Term, s: Term, t: Term,
    e: Term, f: Term,
) -> Equation:  # fmt: skip
    """Attention in the windows of an image is attention with as many more heads, under one mask for every image."""
    repeated = reshape(expand(m, five), dims(b, g, s, t))
    once = reshape(expand(m, dims(1, w, h, s, t)), dims(1, w * h, s, t))
    n, heads = five[2], w * h
    parts = (
        reshape(q, dims(n, heads, s, e)),
        reshape(k, dims(n, heads, t, e)),
        reshape(v, dims(n, heads, t, f)),
    )
    attended = reshape(masked_attention(*parts, once, scale), dims(b, h, s, f))
    return masked_attention(q, k, v, repeated, scale), attended, [
        constant(m), five[0] == 5, n * w == b, five[3] == w, five[4] == g,
    ]  # fmt: skip


# -- the query projection ----------------------------------------------------------------------------------

# An engine that has no kernel for attention with its scale, or takes it as an operator of its own, does without.
HEADS = integers(lambda d: [encode((d["n"], d["s"], 2, d["o"] // 2))])
PROJECTED: dict[str, Any] = {"x": "n s i", "weight": "o i", "b": "o", "o": (4, 6), "heads": HEADS}
ATTENDED: dict[str, Any] = {**PROJECTED, "k": "n h t e", "v": "n h t f", "h": (2,), "scale": NUMBERS}


def split(x: Term, weight: Term, b: Term, heads: Term) -> Term:
    """Queries by head."""
    return permute(reshape(linear(x, weight, b), heads), HEADS_FIRST)


def scaled_split(x: Term, weight: Term, b: Term, heads: Term, value: Term) -> Term:
    """Queries by head, scaled by their projection."""
    return split(x, mul(weight, scalar(value)), mul(b, scalar(value)), heads)


@rule("real", **PROJECTED, value=NUMBERS)
def number_in_projection(x: Term, weight: Term, b: Term, heads: Term, value: Term) -> Equation:
    """A projection that is scaled after it was split into heads has scaled weights."""
    scaled = scaled_split(x, weight, b, heads, value)
    return mul(split(x, weight, b, heads), scalar(value)), scaled, [constant(weight), constant(b)]


@rules("real", **ATTENDED, m=optional("~ s t", "-under-mask"))
def scale_in_query_projection(
    x: Term, weight: Term, b: Term, heads: Term, k: Term, v: Term, m: Term, scale: Term, t: Term
) -> Equation:
    """The scale of attention goes into the weights and the bias that its queries come from."""
    attended = _attention(scaled_split(x, weight, b, heads, scale), k, v, m, 1.0)
    fitting = [] if m is None else fits(shape(m), gather(heads, HEADS_FIRST), shape(k), t)
    return _attention(split(x, weight, b, heads), k, v, m, scale), attended, [
        constant(weight), constant(b), scale != 1.0, heads[0] == 4, *fitting,
    ]  # fmt: skip
