"""OpenVINO on a CPU: the embedded default."""

from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.targets.target import Target, Triton

OPENVINO = Target(
    engine=OpenVINOEngine,
    cost_models=("openvino_int8", "openvino_fp32"),
    rank=20,
    grid=IntegerGrid(unsigned=True, asymmetric=True, equalized=True, channels=True),
    # Where its `max_batch_size` is not 0, the backend compiles the model for that size alone and refuses every other,
    # or fills it up (openvino_backend, `ov::set_batch` and ENABLE_BATCH_PADDING in src/openvino.cc).
    triton=Triton(
        "openvino", "model.xml", "KIND_CPU", joins=False, parameters={"PERFORMANCE_HINT": "LATENCY"}
    ),
)
