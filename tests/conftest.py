"""Settings of every test."""

from hypothesis import settings

# The same examples on every run, and no limit on time: a loaded machine fails no test.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")
