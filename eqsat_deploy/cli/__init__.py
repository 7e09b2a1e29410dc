"""The command `eqsat-deploy`. Results go to standard output, progress, notes and errors to standard error."""

from eqsat_deploy.cli.main import main

__all__ = ["main"]
