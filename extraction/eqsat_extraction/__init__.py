"""E-graphs as arrays, extractors with certified gaps, and kernel cost models."""
