"""The rewrite rules of eqsat-deploy, one module per family."""

from __future__ import annotations

from importlib import import_module

from eqsat_deploy.rules import EgglogRule, rules_of

FAMILIES = (
    "linear_to_convolution",
    "identity_pool",
    "attention",
    "scaled_dot_product",
    "folding",
    "recognition",
    "scaling",
    "equalization",
    "composition",
    "pooling",
    "movement",
    "padding",
    "shuffling",
    "layout",
    "demand",
    "merging",
    "kernels",
    "quantization",
)


def all_rules() -> list[EgglogRule]:
    """Every rule, family by family, in order of definition."""
    return [r for family in FAMILIES for r in rules_of(vars(import_module(f"eqsat_rewrites.{family}")))]
