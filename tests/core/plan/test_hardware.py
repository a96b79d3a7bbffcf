"""The catalogue: every figure has a source, and labels choose the row."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields

import pytest

from llmtrain_core.api.fabric import Nics, NvLink
from llmtrain_core.errors import PlanError
from llmtrain_core.plan.constants import calibrated_type_of, constants_of, fitted_type_of
from llmtrain_core.plan.hardware import (
    ALIASES,
    CATALOGUE,
    Accelerator,
    _figure,
    accelerator,
    accelerator_of,
)
from llmtrain_core.topology.links import GBIT, Links
from tests.support.paths import ROOT

pytestmark = pytest.mark.unit

DATA = ROOT / "core/llmtrain_core/plan/hardware.toml"
WANTED = {
    "V100",
    "A100-40",
    "A100-80",
    "H100",
    "H100-PCIe",
    "H200",
    "B200",
    "GB200",
    "GB300",
    "MI300X",
}


def test_all_wanted_gpus_are_there_and_can_be_planned() -> None:
    assert set(CATALOGUE) >= WANTED
    for name in CATALOGUE:
        assert 0 < constants_of(name).product_efficiency < 1


@pytest.mark.parametrize("row", CATALOGUE.values(), ids=lambda row: row.name)
def test_every_row_has_a_believable_size(row: Accelerator) -> None:
    assert 10 * 2**30 < row.memory.value < 300 * 10**9
    assert row.peak("bfloat16") > row.peak("float32") >= row.peak("float64")
    assert row.link.value > row.nic.value


NAMES = {
    "datasheet": r"(datasheet|benchmarks/\S+\.md) \((19|20)[0-9]{2}\)(:|,| )",
    "derived": r"\b(of|from) .*\((19|20)[0-9]{2}\)",
    "shown": r"^nvidia-smi .*(\((19|20)[0-9]{2}\)|no document)",
    "usual": r"^no document",
    "price": r"^no document.* list price",
}
"""What the source of a figure must say, by what it is worth: which document, or that none is."""


@pytest.mark.parametrize("row", CATALOGUE.values(), ids=lambda row: row.name)
def test_every_figure_has_a_source_of_its_own(row: Accelerator) -> None:
    """Read from the data file itself: no figure of a row can lack one."""
    raw = tomllib.loads(DATA.read_text())[row.name]
    figures = {key: value for key, value in raw.items() if key != "labels"}
    known = {f.name for f in fields(row)} - {"name", "products", "peaks"}
    assert set(figures) == known | set(row.peaks)
    for key, figure in figures.items():
        assert set(figure) == {"value", "unit", "basis", "source"}, key
        assert re.search(NAMES[figure["basis"]], figure["source"]), (key, figure)
    strong = [key for key, figure in figures.items() if figure["basis"] == "datasheet"]
    assert {"memory_bandwidth", "link", "watts"} <= set(strong)


def test_a_basis_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"X\.watts\.basis: 'hearsay'"):
        _figure("X.watts", {"value": 1, "unit": "W", "basis": "hearsay", "source": "a friend"})


@pytest.mark.parametrize(
    ("label", "row", "gib"),
    [
        ("Tesla-V100-SXM2-32GB", "V100", 32),
        ("Tesla-V100-SXM2-16GB", "V100-16", 16),
        ("Tesla-V100-PCIE-32GB", "V100-PCIe-32", 32),
        ("Tesla-V100-PCIE-16GB", "V100-PCIe-16", 16),
        ("NVIDIA-A100-SXM4-80GB", "A100-80", 80),
        ("A100-SXM4-40GB", "A100-40", 40),
        ("NVIDIA-A100-80GB-PCIe", "A100-PCIe-80", 80),
        ("NVIDIA-A100-PCIE-40GB", "A100-PCIe-40", 40),
        ("NVIDIA-H100-80GB-HBM3", "H100", 80),
        ("NVIDIA-H100-PCIe", "H100-PCIe", 80),
        ("NVIDIA-H100-NVL", "H100-NVL", 94),
        ("NVIDIA-H200", "H200", 141),
        ("NVIDIA-H200-NVL", "H200-NVL", 141),
        ("NVIDIA-B200", "B200", 180),
        ("NVIDIA-GB200", "GB200", 186),
        ("NVIDIA-GB300", "GB300", 260),
        ("NVIDIA-H100-80GB-HBM3-SHARED", "H100", 80),
    ],
)
def test_product_labels_choose_the_row(label: str, row: str, gib: int) -> None:
    found = accelerator_of({"nvidia.com/gpu.product": label})
    assert found is CATALOGUE[row]
    assert found.memory.value / 2**30 == pytest.approx(gib, rel=0.02)


def test_no_label_means_two_rows() -> None:
    labels = [label for row in CATALOGUE.values() for label in row.products]
    assert len(labels) == len(set(labels))
    assert {row.name for row in CATALOGUE.values() if not row.products} == {"H100-500W"}


def test_amd_labels_as_well() -> None:
    label = {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"}
    assert accelerator_of(label) is CATALOGUE["MI300X"]


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"nvidia.com/gpu.product": ""},
        {"nvidia.com/gpu.product": "NVIDIA-GeForce-RTX-4090"},
        {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"},
        {"nvidia.com/gpu.product": "NVIDIA-A800-SXM4-40GB"},
        {"nvidia.com/gpu.product": "NVIDIA-A100-SXM-64GB"},
        {"nvidia.com/gpu.product": "NVIDIA-H800"},
        {"nvidia.com/gpu.product": "NVIDIA-B200X"},
        {"gpu": "NVIDIA-H100"},
    ],
)
def test_other_labels_choose_none(labels: dict[str, str]) -> None:
    assert accelerator_of(labels) is None


def test_names_in_any_case_and_aliases() -> None:
    assert accelerator("h100").name == accelerator("H100-SXM").name == "H100"
    assert all(accelerator(alias).name.lower() == name for alias, name in ALIASES.items())


@pytest.mark.parametrize("name", ["TPU", "", "h1000-sxm"])
def test_an_unknown_name_lists_what_is_known(name: str) -> None:
    with pytest.raises(PlanError, match=f"named {name!r}; .*known are V100, .*H200-NVL.*MI300X"):
        accelerator(name)


@pytest.mark.parametrize(("name", "owner"), [("A100-40", "A100"), ("H100", "H100")])
def test_what_is_measured_is_called_calibrated(name: str, owner: str) -> None:
    assert fitted_type_of(name) == calibrated_type_of(name) == owner


@pytest.mark.parametrize("name", ["H100-PCIe", "H100-NVL", "A100-PCIe-80", "V100", "V100-16"])
def test_what_has_no_runs_of_its_own_is_not(name: str) -> None:
    assert fitted_type_of(name) != calibrated_type_of(name)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"no GPU is named 'H10'.*did you mean H100\?.*V100"):
        accelerator("H10")


@pytest.mark.parametrize(
    ("ranks", "nics", "gbits"),
    [
        (8, Nics(per_node=8, gbits_per_second=100.0), 100),
        (8, Nics(per_node=1, gbits_per_second=100.0), 12.5),
        (8, Nics(per_node=16, gbits_per_second=200.0), 400),
        (1, Nics(per_node=1, gbits_per_second=25.0), 25),
        (2, Nics(per_node=1, gbits_per_second=25.0), 12.5),
        (2, Nics(per_node=8, gbits_per_second=400.0), 400),
    ],
)
def test_interfaces_that_a_fabric_names(ranks: int, nics: Nics, gbits: float) -> None:
    named = CATALOGUE["H100"].in_nodes_of(ranks, Links(nics))
    assert named.nic.value == gbits * GBIT
    assert named.link == CATALOGUE["H100"].link


def test_nvlink_that_a_fabric_names() -> None:
    named = CATALOGUE["H100"].in_nodes_of(8, Links(nvlink=NvLink(gbytes_per_second=400.0)))
    assert named.link.value == 200e9
    assert named.nic == CATALOGUE["H100"].nic
    assert CATALOGUE["H100"].in_nodes_of(8, Links()) == CATALOGUE["H100"]


def test_servers_of_another_size() -> None:
    half = CATALOGUE["H100"].in_nodes_of(4)
    assert (half.node.value, half.domain.value) == (4, 4)
    rack = CATALOGUE["GB200"].in_nodes_of(2)
    assert (rack.node.value, rack.domain.value) == (2, 72)
