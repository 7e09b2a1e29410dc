"""What a run found: numbers for people, and the same numbers for machines."""

from eqsat_deploy.report.report import Report, RuleUse

__all__ = ["Report", "RuleUse"]
