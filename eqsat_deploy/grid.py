"""Which INT8 codes kernels read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class IntegerGrid:
    """The activations' codes: symmetric int8, or more where `unsigned` (uint8 for what is never negative) or
    `asymmetric` (zero points other than 0) kernels exist. Weights are symmetric int8 per output channel. `equalized`
    where scaling the channels of a tensor before it is rounded costs nothing, as part of what writes the codes;
    `channels` where kernels that scale and shift channels read the parts of a concatenation on grids of their own;
    `saturating` where kernels add the products of two neighbouring inputs in 16 bits, which saturate: codes of weights
    are then kept so small that they do not (`fake_quantize.peaks`)."""

    unsigned: bool = False
    asymmetric: bool = False
    equalized: bool = False
    channels: bool = False
    saturating: bool = False
