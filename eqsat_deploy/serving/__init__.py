"""Serving saved engines over HTTP: the Open Inference Protocol, version 2, with requests batched as they come."""
