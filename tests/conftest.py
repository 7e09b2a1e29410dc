"""Settings of every test."""

import os

from hypothesis import settings

# The same examples on every run, and no limit on time: a loaded machine fails no test. HYPOTHESIS_PROFILE=search draws
# new ones.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

# No test leaves anything in the user's cache, or finds something there.
os.environ["EQSAT_DEPLOY_CACHE"] = ""
