"""Settings of every test."""

import os
import sys

import pytest
from hypothesis import settings

TORCH_SEED = 0

# The same examples on every run, and no limit on time: a loaded machine fails no test. HYPOTHESIS_PROFILE=search draws
# new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# No test leaves anything in the user's cache, or finds something there.
os.environ["EQSAT_DEPLOY_CACHE"] = ""
# The same prices on every machine.
os.environ["EQSAT_DEPLOY_CPU"] = "avx512_vnni"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Every test draws what it would draw if it ran alone, whatever ran before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(TORCH_SEED)
