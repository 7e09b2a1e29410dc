"""Side-by-side runs and surveys. Never imported by the product."""
