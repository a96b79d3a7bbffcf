"""Catalogue of GPUs; node labels select the row.

`hardware.toml` has the figures with units, sources and the quality of each source. Here all figures
are in FLOP/s, bytes, bytes per second, watts and USD per hour. Memory is the value shown by the
driver ("80 GB" is 80 GiB minus a reserved part).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal, get_args

from llmtrain_core.errors import PlanError
from llmtrain_core.plan.training_setup import Precision
from llmtrain_core.topology.links import Links

PRODUCT_LABELS = ("nvidia.com/gpu.product", "amd.com/gpu.product-name")
"""Node labels of GPU feature discovery and of AMD's node labeller."""

PRECISIONS: tuple[Precision, ...] = ("bfloat16", "float8", "float32", "float64")

Basis = Literal["datasheet", "derived", "shown", "usual", "price", "asked"]
"""Quality of a source, from strong to weak (see `hardware.toml`). asked: set by the job."""

UNITS: Mapping[str, float] = MappingProxyType(
    {
        "TFLOP/s": 1e12,
        "TB/s": 1e12,
        "GB/s": 1e9,
        "Gbit/s": 1e9 / 8,
        "GB": 1e9,
        "MiB": 1024**2,
        "W": 1,
        "GPUs": 1,
        "USD/h": 1,
    }
)
"""Conversion factors of the units in the data file."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its source."""

    value: float
    source: str
    basis: Basis


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A GPU type in its usual server."""

    name: str
    products: tuple[str, ...]
    """Values of the product label for this row, normalized by `_product`."""
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

    def in_nodes_of(self, gpus: int, links: Links | None = None) -> Accelerator:
        """Return the GPU in servers of another size, with the links that a Fabric names.

        An NVLink domain of one server follows the size.
        """
        return self._with_links(gpus, links or Links())._in_size(gpus)

    def _with_links(self, ranks: int, links: Links) -> Accelerator:
        nic, link = self.nic, self.link
        if (rate := links.nic_rate_per_gpu(ranks, max(ranks, int(self.node.value)))) is not None:
            nic = Figure(rate, "the Fabric's nics", "asked")
        if links.nvlink is not None:
            link = Figure(links.nvlink_rate_per_gpu, "the Fabric's nvlink", "asked")
        return replace(self, nic=nic, link=link)

    def _in_size(self, gpus: int) -> Accelerator:
        if gpus == self.node.value:
            return self
        figure = Figure(gpus, "the job's workers.gpusPerNode", "asked")
        spans = self.domain.value > self.node.value
        return replace(self, node=figure, domain=self.domain if spans else figure)

    def peak(self, precision: Precision) -> float:
        """Return the peak of a precision. Raises PlanError if the GPU does not support it."""
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
    """Return the row of a node by its labels; None for an unknown GPU.

    Only complete names match: products with a common prefix can differ in memory.
    """
    for label in PRODUCT_LABELS:
        row = _BY_PRODUCT.get(_product(labels.get(label, "")))
        if row is not None:
            return row
    return None


def accelerator_called(device: str) -> Accelerator | None:
    """Return the row of a device by the name that its driver reports."""
    return accelerator_of({PRODUCT_LABELS[0]: device.replace(" ", "-")})


def _product(value: str) -> str:
    """Normalize a label value: drop the vendor and the suffix of time slicing."""
    name = value.lower().replace("_", "-").removesuffix("-shared")
    return name.removeprefix("nvidia-").removeprefix("tesla-")


def _row(name: str, fields: Mapping[str, Any]) -> Accelerator:
    """Return a row of the data file. Raises KeyError or ValueError if it is incomplete."""
    figures = {key: _figure(f"{name}.{key}", raw) for key, raw in fields.items() if key != "labels"}
    peaks = {precision: figures.pop(precision) for precision in PRECISIONS if precision in figures}
    return Accelerator(name, tuple(fields["labels"]), MappingProxyType(peaks), **figures)


def _figure(where: str, raw: Mapping[str, Any]) -> Figure:
    if raw["basis"] not in get_args(Basis):
        raise ValueError(f"hardware.toml: {where}.basis: {raw['basis']!r} is none of {Basis}")
    return Figure(raw["value"] * UNITS[raw["unit"]], raw["source"], raw["basis"])


def _catalogue() -> dict[str, Accelerator]:
    text = files("llmtrain_core.plan").joinpath("hardware.toml").read_text("utf-8")
    return {name: _row(name, fields) for name, fields in tomllib.loads(text).items()}


CATALOGUE: Mapping[str, Accelerator] = MappingProxyType(_catalogue())
_BY_PRODUCT: Mapping[str, Accelerator] = MappingProxyType(
    {product: row for row in CATALOGUE.values() for product in row.products}
)
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "v100-32": "v100",
        "a100": "a100-80",
        "a100-pcie": "a100-pcie-80",
        "v100-pcie": "v100-pcie-32",
        "h100-sxm": "h100",
        "h100-80": "h100",
        "h100 pcie": "h100-pcie",
    }
)
