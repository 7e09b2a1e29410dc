"""Equality saturation between a PyTorch model and its INT8 engine."""
