"""Inputs out of where data is: arrays, images, texts, a function; for calibration, and as example inputs."""

from eqsat_deploy.data.images import DEVIATION, MEAN
from eqsat_deploy.data.reading import Reading
from eqsat_deploy.data.sources import check_source, example_batch, load_batches

__all__ = ["DEVIATION", "MEAN", "Reading", "check_source", "example_batch", "load_batches"]
