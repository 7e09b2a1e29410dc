"""Engines: what compiles a module for a processor and runs it there."""

from eqsat_deploy.deployment import Batch, Signature
from eqsat_deploy.engines.base import Engine, Layer, engines, find_engine

__all__ = ["Batch", "Engine", "Layer", "Signature", "engines", "find_engine"]
