"""Capture: a model becomes one functional ATen graph with a symbolic batch, attention kept whole.

Works on a copy that shares parameters with the caller's model, in eval mode; the model itself is not touched.
"""

from eqsat_deploy.capture.copying import check_model, run, shared_copy
from eqsat_deploy.capture.graph import Captured
from eqsat_deploy.capture.model import capture

__all__ = ["Captured", "capture", "check_model", "run", "shared_copy"]
