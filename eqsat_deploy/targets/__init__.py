"""Targets: what is priced, quantized and built for, one declaration each."""
