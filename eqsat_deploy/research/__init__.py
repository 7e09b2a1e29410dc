"""Looking inside: what shares an e-class, why a rule did not act, and what the order of rewriting would cost.

from eqsat_deploy import research

exploration = research.explore(model, cost="trt_int8")
research.inside(exploration, "fc").draw()
print(research.why_not(exploration, "flatten-linear-as-convolution", "fc"))
print(research.compare_orderings(model, cost="trt_int8"))
research.compare_orderings(model, cost="trt_int8", strategies=["joint", "mcts"], seeds=range(5)).plot()
"""

from eqsat_deploy.explain import ClassView, Form, Inside, inside
from eqsat_deploy.report.reasons import WhyNot, why_not
from eqsat_deploy.research.destructive import lowered_form, rewrite_alone
from eqsat_deploy.research.environment import Effort, Environment, Ordering
from eqsat_deploy.research.networks import to_networkx
from eqsat_deploy.research.orderings import OrderingTable, Outcome, compare_orderings
from eqsat_deploy.research.sketches import Sketch, Sketches
from eqsat_deploy.research.strategies import STRATEGIES, Strategy
from eqsat_deploy.research.sweeps import Job, sweep
from eqsat_deploy.research.traces import Trace, replay, trace
from eqsat_deploy.schedule import Backoff, Schedule, Step, Until
from eqsat_deploy.search import Search, explore

__all__ = [
    "STRATEGIES", "Backoff", "ClassView", "Effort", "Environment", "Form", "Inside", "Job", "Ordering",
    "OrderingTable", "Outcome", "Schedule", "Search", "Sketch", "Sketches", "Step", "Strategy", "Trace", "Until",
    "WhyNot", "compare_orderings", "explore", "inside", "lowered_form", "replay", "rewrite_alone", "sweep",
    "to_networkx", "trace", "why_not",
]  # fmt: skip
