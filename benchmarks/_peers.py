"""Other quantizers, each as `(model, samples, transformer) -> (run, seconds)`.

`model` is a float network of one input and one output, `samples` its calibration data, one sample each, `transformer`
whether it is one. `run` answers one sample on this machine's CPU. Seconds are of quantization: neither of the export
before it nor of the compilation after it. What a peer raises is left to the caller.

    pip install nncf onnxruntime onnx onnxscript && pip install --no-deps torchao
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eqsat_deploy.processors import cpu, description

Run = Callable[[Tensor], Tensor]
Peer = Callable[[nn.Module, Sequence[Tensor], bool], tuple[Run, float]]

SETTINGS = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
HELD = 4  # every fourth sample is what the accuracy control measures on
REVERTED, LONGEST = 10, 300.0  # kernels and seconds of the accuracy control, at most
PAUSE = 0.02  # seconds


def settled(run: Run, x: Tensor) -> float:
    """Seconds of the second of two calls: the first finds its weights where others' calls have left them. The pause
    before lets threads end that another runtime keeps waiting for work (ONNX Runtime's do, at full speed)."""
    time.sleep(PAUSE)
    run(x)
    start = time.perf_counter()
    run(x)
    return time.perf_counter() - start


def versions(packages: Iterable[str]) -> dict[str, str]:
    """What figures are of: the CPU, and the versions of Python and of `packages`."""
    machine = {"cpu": description(cpu()[0]), "python": platform.python_version()}
    return machine | {package: version(package) for package in packages}


def nncf(model: nn.Module, samples: Sequence[Tensor], transformer: bool) -> tuple[Run, float]:
    """NNCF's default, on OpenVINO."""
    plain = converted(model, samples[0])
    start = time.perf_counter()
    quantized = _nncf_default(plain, samples, transformer)
    seconds = time.perf_counter() - start
    return runner(quantized), seconds


def nncf_accuracy_control(
    model: nn.Module, samples: Sequence[Tensor], transformer: bool
) -> tuple[Run, float]:
    """NNCF with accuracy control, on OpenVINO: the mean cosine to the float network's outputs on a quarter of the
    samples, which it does not calibrate on, may drop by NNCF's default of 0.01.

    Raises:
        TimeoutError: it takes longer than `LONGEST`; NNCF has no limit of its own.
    """
    import nncf

    held, calibrated = samples[::HELD], [s for i, s in enumerate(samples) if i % HELD]
    with torch.no_grad():
        expected = torch.cat([model(sample) for sample in held])
    plain = converted(model, samples[0])
    start = time.perf_counter()

    def agreement(compiled: Any, validation: Any) -> tuple[float, list[float]]:
        if time.perf_counter() - start > LONGEST:
            raise TimeoutError(f"accuracy control took over {LONGEST:.0f} s")
        found = torch.cat([torch.from_numpy(np.array(compiled(item)[0])) for item in validation])
        each = F.cosine_similarity(expected[: len(found)], found)
        return float(each.mean()), each.tolist()

    quantized = nncf.quantize_with_accuracy_control(
        plain,
        nncf.Dataset([sample.numpy() for sample in calibrated]),
        nncf.Dataset([sample.numpy() for sample in held]),
        agreement,
        subset_size=len(calibrated),
        model_type=nncf.ModelType.TRANSFORMER if transformer else None,
        advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
            max_num_iterations=REVERTED
        ),
    )
    seconds = time.perf_counter() - start
    return runner(quantized), seconds


def onnxruntime(model: nn.Module, samples: Sequence[Tensor], transformer: bool) -> tuple[Run, float]:
    """ONNX Runtime's `quantize_static` after its own preparation: QDQ, unsigned activations from their minimum and
    maximum, signed weights per channel."""
    import onnxruntime
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, written = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
        torch.onnx.export(model, (samples[0],), plain, dynamo=True, external_data=False, verbose=False)
        name = onnxruntime.InferenceSession(plain).get_inputs()[0].name
        start = time.perf_counter()
        quant_pre_process(plain, prepared)
        quantize_static(
            prepared,
            written,
            _reader(name, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        seconds = time.perf_counter() - start
        session = onnxruntime.InferenceSession(written)

    def run(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: x.numpy()})[0])

    return run, seconds


def torchao(model: nn.Module, samples: Sequence[Tensor], transformer: bool) -> tuple[Run, float]:
    """torchao's PT2E with the quantizer of X86 Inductor, compiled by Inductor, which needs a C++ compiler.

    It finds convolutions by the module that they were in: one that calls `F.conv2d` itself, as EfficientNet-Lite's do,
    stays in float, without a word. A module that is called twice, as ResNet's ReLU is, is an error.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    exported = torch.export.export(model, (samples[0],)).module()
    start = time.perf_counter()
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        prepared = prepare_pt2e(exported, quantizer)
        for sample in samples:
            prepared(sample)
        quantized = convert_pt2e(prepared)
    seconds = time.perf_counter() - start
    return compiled(quantized, samples[0]), seconds


def compiled(model: nn.Module, x: Tensor) -> Run:
    """`model` compiled by Inductor, its weights constants, for inputs like `x`."""
    import torch._inductor.config

    torch._dynamo.reset()
    made = torch.compile(model)

    def run(x: Tensor) -> Tensor:
        with torch.no_grad(), torch._inductor.config.patch(freezing=True):
            answer: Tensor = made(x)
        return answer

    run(x)
    return run


PEERS: dict[str, Peer] = {
    "nncf": nncf,
    "nncf_accuracy_control": nncf_accuracy_control,
    "onnxruntime": onnxruntime,
    "torchao": torchao,
}
PACKAGES = {name: name.partition("_")[0] for name in PEERS}


def nncf_quantized(model: nn.Module, data: list[Tensor], transformer: bool) -> Any:
    """The model of OpenVINO that NNCF's default makes."""
    return _nncf_default(converted(model, data[0]), data, transformer)


def _nncf_default(plain: Any, data: Sequence[Tensor], transformer: bool) -> Any:
    import nncf

    kind = nncf.ModelType.TRANSFORMER if transformer else None
    dataset = nncf.Dataset([sample.numpy() for sample in data])
    return nncf.quantize(plain, dataset, model_type=kind, subset_size=len(data))


def converted(model: nn.Module, sample: Tensor) -> Any:
    """The float model of OpenVINO, for inputs of the shape of `sample`."""
    import openvino

    plain = openvino.convert_model(torch.export.export(model, (sample,)))
    plain.reshape(list(sample.shape))
    return plain


def runner(model: Any) -> Run:
    """A model of OpenVINO compiled; as lean a call as ours: no copies in, one copy out."""
    import openvino

    request = openvino.Core().compile_model(model, "CPU", SETTINGS).create_infer_request()

    def run(x: Tensor) -> Tensor:
        request.infer({0: openvino.Tensor(x.numpy(), shared_memory=True)})
        return torch.from_numpy(np.array(request.get_output_tensor(0).data))

    return run


def failure(error: Exception) -> str:
    """One line of why a peer failed."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _reader(name: str, samples: Sequence[Tensor]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Tensor] = iter(samples)

        def get_next(self) -> dict[str, Any] | None:
            sample = next(self.left, None)
            return None if sample is None else {name: sample.numpy()}

    return Reader()
