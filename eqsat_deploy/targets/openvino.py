"""OpenVINO on a CPU: the embedded default."""

from eqsat_deploy import processors
from eqsat_deploy.engines.openvino import OpenVINOEngine
from eqsat_deploy.grid import IntegerGrid
from eqsat_deploy.targets.target import Target, Triton
from eqsat_extraction.cost_models.openvino import TABLES


def cpu_option() -> dict[str, str]:
    """The table of prices that was fitted on CPUs with the instructions of this one, or of the one that the environment
    variable EQSAT_DEPLOY_CPU names; nothing where there is none."""
    if (named := processors.named()) is not None:
        return {"cpu": named}
    _, features = processors.cpu()
    found = next((name for name in TABLES if name in features), None)
    # Those of AVX2 are of CPUs that have nothing more; one with AVX-VNNI is nearer to the default.
    return {} if found is None or (found == "avx2" and not processors.saturating()) else {"cpu": found}


OPENVINO = Target(
    engine=OpenVINOEngine,
    cost_models=("openvino_int8", "openvino_fp32"),
    rank=20,
    cost_options=cpu_option,
    saturates=processors.saturating,
    grid=IntegerGrid(unsigned=True, asymmetric=True, equalized=True, channels=True),
    # Where its `max_batch_size` is not 0, the backend compiles the model for that size alone and refuses every other,
    # or fills it up (openvino_backend, `ov::set_batch` and ENABLE_BATCH_PADDING in src/openvino.cc).
    triton=Triton(
        "openvino", "model.xml", "KIND_CPU", joins=False, parameters={"PERFORMANCE_HINT": "LATENCY"}
    ),
)
