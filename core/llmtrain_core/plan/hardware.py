"""The accelerators a plan knows, each figure with its source; node labels choose the row.

Peaks are dense, in FLOP/s, of matrix units where the chip has them for that type. Memory is what
the driver shows, in bytes (a product's "80 GB" is 80 GiB less what the device keeps). NVLink and
NIC rates are per GPU. Prices are list prices in USD per GPU hour and only a default: they differ by
a factor of five between providers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType

from llmtrain_core.plan.errors import PlanError
from llmtrain_core.plan.recipe import Precision

PRODUCT_LABELS = ("nvidia.com/gpu.product", "amd.com/gpu.product-name")
"""Node labels of GPU feature discovery and of AMD's node labeller."""

MIB = 1024**2
GB, TERA, GBIT = 10**9, 10**12, 10**9 / 8


@dataclass(frozen=True, slots=True)
class Figure:
    """A number and where it is published."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One GPU type in the server it usually comes in."""

    name: str
    products: tuple[str, ...]
    """Starts of the product label's value, lower case, that mean this row."""
    peaks: Mapping[Precision, Figure]
    memory: Figure
    memory_bandwidth: Figure
    """Bytes per second."""
    link: Figure
    """Bytes per second of one GPU to its neighbours in one direction (NVLink, xGMI or PCIe)."""
    nic: Figure
    """Bytes per second of one GPU to other servers, in one direction."""
    domain: Figure
    """GPUs that `link` joins."""
    node: Figure
    """GPUs per server."""
    watts: Figure
    """Board power limit of one GPU."""
    price: Figure
    """USD per GPU hour."""

    def in_nodes_of(self, gpus: int) -> Accelerator:
        """Return the same GPU in servers of another size; a domain of one server follows."""
        if gpus == self.node.value:
            return self
        figure = Figure(gpus, "the job's workers.gpusPerNode")
        spans = self.domain.value > self.node.value
        return replace(self, node=figure, domain=self.domain if spans else figure)

    def peak(self, precision: Precision) -> float:
        """Return the peak of a precision. Raises PlanError where the chip has none."""
        if precision not in self.peaks:
            raise PlanError(
                f"{self.name} has no {precision} matrix units",
                "use one of " + ", ".join(self.peaks),
            )
        return self.peaks[precision].value


def accelerator(name: str) -> Accelerator:
    """Return a row by its name, in any case. Raises PlanError for an unknown GPU."""
    by_name = {key.lower(): row for key, row in CATALOGUE.items()}
    wanted = ALIASES.get(name.lower(), name.lower())
    if wanted in by_name:
        return by_name[wanted]
    known = ", ".join(CATALOGUE)
    near = get_close_matches(wanted, by_name, n=1)
    hint = f"did you mean {by_name[near[0]].name}? " if near else ""
    raise PlanError(f"no GPU is named {name!r}", f"{hint}known are {known}")


def accelerator_of(labels: Mapping[str, str]) -> Accelerator | None:
    """Return the row that a node's labels name; None for a node without a known GPU."""
    for label in PRODUCT_LABELS:
        product = labels.get(label, "").lower().replace("_", "-")
        rows = [
            (len(start), row)
            for row in CATALOGUE.values()
            for start in row.products
            if product.startswith(start)
        ]
        if product and rows and "-mig-" not in product:
            return max(rows, key=lambda found: found[0])[1]
    return None


def _peaks(
    bf16: float, fp8: float | None, fp32: float, fp64: float, source: str
) -> dict[Precision, Figure]:
    """Return dense peaks from TFLOP/s; float32 without TF32, which the trainer does not use."""
    found: dict[Precision, Figure] = {
        "bfloat16": Figure(bf16 * TERA, source),
        "float32": Figure(fp32 * TERA, source),
        "float64": Figure(fp64 * TERA, source),
    }
    if fp8 is not None:
        found["float8"] = Figure(fp8 * TERA, source)
    return found


_V100 = "NVIDIA V100 datasheet (2020); 16 bit is float16: the chip has no bfloat16"
_A100 = "NVIDIA A100 datasheet (2021)"
_H100 = "NVIDIA H100 datasheet (2023), dense"
_TITAN = "pytorch/torchtitan benchmarks/llama3_h100_202412_torchtitan.md, hardware"
_H200 = "NVIDIA H200 datasheet (2024), dense"
_B200 = "NVIDIA HGX B200 datasheet (2025), dense"
_GB200 = "NVIDIA GB200 NVL72 datasheet (2025), per GPU, dense"
_GB300 = "NVIDIA GB300 NVL72 datasheet (2025), per GPU, dense"
_MI300X = "AMD Instinct MI300X datasheet (2023), dense"
_SMI = "memory as nvidia-smi shows it for the product"
_PRICE = "typical on-demand list price of specialised clouds, 2026; pass --price for your own"
_DGX1 = "NVIDIA DGX-1 datasheet: 4 x 100 Gb/s for 8 GPUs"
_POWER = (
    "dense peak of the H100 SXM times (500/700)^(1/3), the clock that dynamic power of frequency"
    " cubed allows; the source says between SXM (989) and NVL (835). " + _TITAN
)


def _row(
    name: str, source: str, products: tuple[str, ...], peaks: Mapping[Precision, Figure],
    memory: Figure, bandwidth: float, link: float, nic: Figure, watts: float, price: float,
    domain: int = 8, node: int = 8,
) -> Accelerator:  # fmt: skip
    return Accelerator(
        name, products, MappingProxyType(dict(peaks)), memory,
        memory_bandwidth=Figure(bandwidth * TERA, source), link=Figure(link * GB, source),
        nic=nic, domain=Figure(domain, source), node=Figure(node, source),
        watts=Figure(watts, source), price=Figure(price, _PRICE),
    )  # fmt: skip


def _nic(gbits: float, source: str) -> Figure:
    return Figure(gbits * GBIT, source)


_ROWS = (
    _row("V100", _V100, ("tesla-v100-sxm", "nvidia-v100"), _peaks(125, None, 15.7, 7.8, _V100),
         Figure(32510 * MIB, _SMI), 0.9, 150, _nic(50, _DGX1), 300, 0.6),
    _row("A100-40", _A100, ("nvidia-a100-sxm4-40gb", "a100-sxm4-40gb"),
         _peaks(312, None, 19.5, 19.5, _A100), Figure(40960 * MIB, _SMI), 1.555, 300,
         _nic(200, "NVIDIA DGX A100 datasheet"), 400, 1.3),
    _row("A100-80", _A100, ("nvidia-a100-sxm4-80gb", "a100-sxm4-80gb", "nvidia-a800-sxm4"),
         _peaks(312, None, 19.5, 19.5, _A100), Figure(81920 * MIB, _SMI), 2.039, 300,
         _nic(200, "NVIDIA DGX A100 datasheet"), 400, 1.8),
    _row("H100", _H100, ("nvidia-h100-80gb-hbm3",), _peaks(989, 1979, 67, 67, _H100),
         Figure(81559 * MIB, _SMI), 3.35, 450, _nic(400, "NVIDIA DGX H100 datasheet"), 700, 3.0),
    _row("H100-500W", _TITAN, ("nvidia-h100-96gb",),
         _peaks(989 * (500 / 700) ** (1 / 3), 1979 * (500 / 700) ** (1 / 3), 60, 60, _POWER),
         Figure(97871 * MIB, _SMI), 2.4, 450, _nic(400, _TITAN), 500, 3.0),
    _row("H100-PCIe", _H100, ("nvidia-h100-pcie",), _peaks(756, 1513, 51, 51, _H100),
         Figure(81559 * MIB, _SMI), 2.0, 64, _nic(200, "usual server: one 400 Gb/s NIC per two"),
         350, 2.4),
    _row("H200", _H200, ("nvidia-h200",), _peaks(989, 1979, 67, 67, _H200),
         Figure(143771 * MIB, _SMI), 4.8, 450, _nic(400, "NVIDIA DGX H200 datasheet"), 700, 3.8),
    _row("B200", _B200, ("nvidia-b200",), _peaks(2250, 4500, 75, 37, _B200),
         Figure(183359 * MIB, _SMI), 8.0, 900, _nic(400, "NVIDIA DGX B200 datasheet"), 1000, 5.5),
    _row("GB200", _GB200, ("nvidia-gb200",), _peaks(2500, 5000, 80, 40, _GB200),
         Figure(189471 * MIB, _SMI), 8.0, 900, _nic(400, "NVIDIA GB200 NVL72: ConnectX-7"), 1200,
         6.5, domain=72, node=4),
    _row("GB300", _GB300, ("nvidia-gb300",), _peaks(2500, 5000, 77, 1.3, _GB300),
         Figure(279 * GB, _GB300), 8.0, 900, _nic(800, "NVIDIA GB300 NVL72: ConnectX-8"), 1400, 8.0,
         domain=72, node=4),
    _row("MI300X", _MI300X, ("amd-instinct-mi300x", "mi300x"),
         _peaks(1307, 2615, 163, 163, _MI300X), Figure(192 * GB, _MI300X), 5.3, 448,
         _nic(400, "usual server: one 400 Gb/s NIC per GPU"), 750, 2.5),
)  # fmt: skip

CATALOGUE: Mapping[str, Accelerator] = MappingProxyType({row.name: row for row in _ROWS})
ALIASES: Mapping[str, str] = MappingProxyType(
    {"a100": "a100-80", "h100-sxm": "h100", "h100-80": "h100", "h100 pcie": "h100-pcie"}
)
