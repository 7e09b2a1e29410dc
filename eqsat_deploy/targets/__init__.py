"""Targets: what is priced, quantized and built for, one declaration each."""

from __future__ import annotations

from eqsat_extraction.kernel import CostModel


def find_cost(cost: str | CostModel) -> CostModel:
    """The cost model called `cost` (for the GPU of this machine where it has a table), or `cost` itself.

    Raises:
        UnknownNameError: no such cost model is registered.
    """
    from eqsat_deploy.doctor import auto_cost, roofline_device
    from eqsat_extraction.cost_models import find_cost_model

    if not isinstance(cost, str):
        return cost
    if cost == "auto":
        cost = auto_cost()
    device = roofline_device() if cost.startswith("trt_") else None
    return find_cost_model(cost) if device is None else find_cost_model(cost, device=device)
