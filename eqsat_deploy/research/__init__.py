"""Looking inside: what shares an e-class, why a rule did not act, and what the order of rewriting would cost.

from eqsat_deploy import research

exploration = research.explore(model, cost="trt_int8")
research.inside(exploration, "fc").draw()
print(research.why_not(exploration, "flatten-linear-as-convolution", "fc"))
print(research.compare_orderings(model, cost="trt_int8"))
"""

from eqsat_deploy.explain import ClassView, Form, Inside, inside
from eqsat_deploy.report.reasons import WhyNot, why_not
from eqsat_deploy.research.destructive import lowered_form, rewrite_alone
from eqsat_deploy.research.networks import to_networkx
from eqsat_deploy.research.orderings import Ordering, OrderingTable, compare_orderings
from eqsat_deploy.search import Search, explore

__all__ = [
    "ClassView", "Form", "Inside", "Ordering", "OrderingTable", "Search", "WhyNot", "compare_orderings",
    "explore", "inside", "lowered_form", "rewrite_alone", "to_networkx", "why_not",
]  # fmt: skip
