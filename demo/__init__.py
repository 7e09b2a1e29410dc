"""`python -m demo`: two small networks, trained on real data, optimized, quantized, built, measured and saved."""
