"""Engines: what compiles a module for a processor and runs it there."""

from eqsat_deploy.deployment import Batch, Signature
from eqsat_deploy.engines.base import Engine, Layer

__all__ = ["Batch", "Engine", "Layer", "Signature"]
