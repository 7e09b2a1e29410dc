"""Equality saturation between a PyTorch model and its INT8 engine.

import eqsat_deploy as eqd

optimized = eqd.optimize(model, cost="trt_int8")
engine = optimized.quantize(batches).build()
engine.save("model.eqsat")
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eqsat_deploy.buckets import BucketedModule
    from eqsat_deploy.errors import EqsatError
    from eqsat_deploy.loading import load
    from eqsat_deploy.module import OptimizedModule
    from eqsat_deploy.optimizer import optimize
    from eqsat_deploy.report import Report
    from eqsat_deploy.rules import rule
    from eqsat_deploy.saturate import Budget
    from eqsat_deploy.soundness import check_egraph

__version__ = "0.1.0"

# Loaded on first use, so that importing the package costs little and no stage imports another for nothing.
_HOMES = {
    "BucketedModule": "buckets",
    "Budget": "saturate",
    "EqsatError": "errors",
    "OptimizedModule": "module",
    "Report": "report",
    "check_egraph": "soundness",
    # Where torch is not installed, an artifact is loaded without it, to be called with NumPy arrays.
    "load": "loading" if find_spec("torch") is not None else "torchless",
    "optimize": "optimizer",
    "rule": "rules",
}

__all__ = [
    "BucketedModule", "Budget", "EqsatError", "OptimizedModule", "Report", "__version__", "check_egraph", "load",
    "optimize", "rule",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
