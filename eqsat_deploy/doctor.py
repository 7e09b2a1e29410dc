"""What this machine can do, why not more, and how to get what is missing."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, requires, version
from typing import TYPE_CHECKING, Any

import torch

from eqsat_deploy.errors import RegistrationError
from eqsat_deploy.processors import available, cpu
from eqsat_deploy.targets import Candidate, candidates
from eqsat_deploy.targets.tensorrt import device_option

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

# CPU features that INT8 kernels use, by their names in /proc/cpuinfo and in torch's CPU capabilities.
INT8_FEATURES = {
    "AVX512-VNNI": ("avx512_vnni",),
    "AVX-VNNI": ("avx_vnni",),
    "AMX-INT8": ("amx_int8",),
    "dot product (ARMv8.2)": ("asimddp",),
    "I8MM (ARMv8.6)": ("i8mm",),
}
PACKAGES = ("torch", "egglog", "numpy", "highspy", "numba", "rich", "safetensors", "networkx")
OK, MISSING, BROKEN = "ok", "missing", "broken"
STYLES = {OK: "green", MISSING: "yellow", BROKEN: "red"}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `state` is ok, missing (optional) or broken; `remedy` says how to get it."""

    name: str
    state: str
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings; prints as a table, and `to_json` gives plain values.

    `engine` is what `build()` would use and `cost` what `cost="auto"` stands for, None where there is no
    engine.
    """

    findings: tuple[Finding, ...]
    engine: str | None = None
    cost: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def healthy(self) -> bool:
        """Whether a model can be optimized and built here."""
        return self.engine is not None and all(finding.state != BROKEN for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The diagnosis as JSON values."""
        return {**asdict(self), "healthy": self.healthy}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        table = Table("", "", "", box=None, show_header=False, pad_edge=False)
        for finding in self.findings:
            detail = Text(finding.detail)
            if finding.remedy:
                detail.append(f"\n{finding.remedy}", style="italic")
            table.add_row(Text(finding.state, style=STYLES[finding.state]), finding.name, detail)
        yield table
        yield Text(f"build() uses {self.engine or 'nothing'}, cost='auto' is {self.cost or 'undefined'}")


def doctor() -> Diagnosis:
    """Look at packages, CPU, GPU, engines and cost models; never raises for what it finds."""
    try:
        known = candidates()
        targets = list(_targets(known))
    except RegistrationError as error:
        known, targets = (), [Finding("engines", BROKEN, str(error), "uninstall one of the two")]
    findings = [*_packages(), _cpu(), _gpu(), *targets, _cost_models()]
    best = next((candidate.target for candidate in known if candidate.lacks is None), None)
    engine, cost = (best.name, best.cost_models[0]) if best is not None else (None, None)
    versions = {name: found for name in ("eqsat-deploy", *PACKAGES) if (found := _version(name)) is not None}
    versions["python"] = platform.python_version()
    return Diagnosis(tuple(findings), engine, cost, versions)


def _packages() -> Iterator[Finding]:
    own = _version("eqsat-deploy")
    if own is None:
        yield Finding(
            "eqsat-deploy", BROKEN, "imported from a checkout that is not installed: nothing is registered",
            "pip install -e . in the checkout",
        )  # fmt: skip
    else:
        yield Finding("eqsat-deploy", OK, f"{own}, Python {platform.python_version()}")
    wanted = {entry.split(";")[0].strip() for entry in (requires("eqsat-deploy") or [])} if own else set()
    for name in PACKAGES:
        found = _version(name)
        requirement = next((entry for entry in sorted(wanted) if _distribution(entry) == name), name)
        if found is None:
            yield Finding(name, BROKEN, "not installed", f"pip install {requirement!r}")
        elif not _satisfied(requirement, found):
            yield Finding(
                name, BROKEN, f"{found} is installed, {requirement} is needed", f"pip install {requirement!r}"
            )
        else:
            yield Finding(name, OK, found)


def _cpu() -> Finding:
    name, flags = cpu()
    features = [label for label, known in INT8_FEATURES.items() if flags & set(known)]
    detail = f"{name or platform.machine()}, {available()} cores"
    if features:
        return Finding("CPU", OK, f"{detail}, INT8 by {', '.join(features)}")
    return Finding(
        "CPU", MISSING, f"{detail}, no INT8 instructions seen",
        "INT8 engines gain little here, and codes of weights are kept smaller; measure on a CPU with VNNI, AMX or ARM "
        "dot products",
    )  # fmt: skip


def _gpu() -> Finding:
    if not torch.cuda.is_available():
        build = "a CPU build of torch" if torch.version.cuda is None else "no CUDA device visible to torch"
        return Finding(
            "GPU", MISSING, build, "a machine with an NVIDIA GPU, its driver and a CUDA build of torch"
        )
    name = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    detail = f"{name}, compute capability {major}.{minor}, CUDA {torch.version.cuda}"
    if device_option():
        return Finding("GPU", OK, detail)
    return Finding(
        "GPU", OK, f"{detail}; no roofline table",
        "trt_int8 prices for its default device; find_cost_model('trt_int8', device=...) takes your own table",
    )  # fmt: skip


def _targets(known: Sequence[Candidate]) -> Iterator[Finding]:
    if not known:
        yield Finding("engines", BROKEN, "no target is registered", "pip install -e . in the checkout")
    for candidate in known:
        if candidate.lacks is None:
            yield Finding(f"engine {candidate.name}", OK, _version(candidate.name) or "available")
        else:
            yield Finding(f"engine {candidate.name}", MISSING, "not available", candidate.lacks)


def _cost_models() -> Finding:
    from eqsat_extraction.cost_models import CostModelError, cost_models

    try:
        known = cost_models()
    except CostModelError as error:
        return Finding("cost models", BROKEN, str(error))
    if not known:
        return Finding("cost models", BROKEN, "none is registered", "pip install -e . in the checkout")
    return Finding("cost models", OK, ", ".join(known))


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _distribution(requirement: str) -> str:
    return requirement.split("[")[0].rstrip("0123456789.*,<>=!~ ").lower()


def _satisfied(requirement: str, found: str) -> bool:
    """Whether `found` is in the range of `requirement`; true where `packaging` is not there to tell."""
    if importlib.util.find_spec("packaging") is None:
        return True
    from packaging.requirements import Requirement

    return Requirement(requirement).specifier.contains(found, prereleases=True)
