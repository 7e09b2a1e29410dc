"""Nodes that nothing writes, through OpenVINO's frontend for exported graphs."""

from __future__ import annotations

import re
import warnings
from typing import Any

from torch import fx
from torch.export import default_decompositions

from eqsat_deploy.engines.program import export_program
from eqsat_deploy.engines.writer import Region
from eqsat_deploy.errors import EngineError


def converted(region: Region) -> list[Any]:
    """What `region` returns in OpenVINO's operators; `EngineError` when torch or OpenVINO refuses it."""
    program = export_program(region.module, region.examples(), region.dynamic)
    try:
        with warnings.catch_warnings():  # torch copies pytree leaves in a way that it deprecates itself
            warnings.simplefilter("ignore", FutureWarning)
            graph: fx.GraphModule = program.run_decompositions(_decompositions()).module()
        model = _of_graph(graph)
    except Exception as error:  # neither torch's nor the frontend's errors have a common base
        raise EngineError(_reason(str(error), region)) from error
    for parameter, value in zip(model.get_parameters(), region.read, strict=True):
        for reader in parameter.output(0).get_target_inputs():
            reader.replace_source_output(value.value)
    return [result.input_value(0) for result in model.get_results()]


def _reason(message: str, region: Region) -> str:
    """Why nodes cannot be converted: the operators that OpenVINO does not have and their nodes, if it says so."""
    found = re.search(r"No conversion rule found for operations: (.*)", message)
    if found is None:
        return f"OpenVINO cannot convert {', '.join(region.nodes)}: {message}"
    return (
        f"OpenVINO has no operator for {found[1]} (node {', '.join(region.nodes)}): compute that outside the model, "
        "or build for another engine"
    )


def _of_graph(graph: fx.GraphModule) -> Any:
    """What `openvino.convert_model` makes of `graph`, by its steps: it would take operators apart by itself, too, so
    that names could not be traced back to the module's, prepare inputs that need no preparation, and report its use."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    from eqsat_deploy.engines.openvino_operators import extensions

    frontend = FrontEndManager().load_by_framework("pytorch")
    for extension in extensions():
        frontend.add_extension(extension)
    decoder = TorchFXPythonDecoder(graph, dynamic_shapes=True)  # which the frontend does not keep alive
    return frontend.convert(frontend.load(decoder))


def _decompositions() -> Any:
    """Of all operators that the frontend does not know."""
    from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose

    from eqsat_deploy.engines.openvino_operators import DECOMPOSITIONS

    table: Any = default_decompositions()
    for operator in ops_to_not_decompose():
        table.pop(operator, None)
    table.update(DECOMPOSITIONS)
    return table
