"""OpenVINO on a CPU: the embedded default."""

from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.targets.target import Target

OPENVINO = Target(
    engine=OpenVINOEngine,
    cost_models=("openvino_int8", "openvino_fp32"),
    rank=20,
    grid=IntegerGrid(unsigned=True, asymmetric=True, equalized=True, channels=True),
)
