"""The catalogue: every figure has a source, and labels choose the row."""

from __future__ import annotations

from dataclasses import fields

import pytest

from llmtrain_core.plan.constants import constants_of
from llmtrain_core.plan.errors import PlanError
from llmtrain_core.plan.hardware import (
    ALIASES,
    CATALOGUE,
    Accelerator,
    Figure,
    accelerator,
    accelerator_of,
)

pytestmark = pytest.mark.unit

WANTED = {"V100", "A100-40", "A100-80", "H100", "H100-PCIe", "H200", "B200", "GB200", "GB300",
          "MI300X"}  # fmt: skip


def test_all_wanted_gpus_are_there_and_can_be_planned() -> None:
    assert set(CATALOGUE) >= WANTED
    for name in CATALOGUE:
        assert 0 < constants_of(name).product_efficiency < 1


@pytest.mark.parametrize("row", CATALOGUE.values(), ids=lambda row: row.name)
def test_every_figure_has_a_source_and_a_believable_size(row: Accelerator) -> None:
    figures = [getattr(row, f.name) for f in fields(row)] + list(row.peaks.values())
    figures = [figure for figure in figures if isinstance(figure, Figure)]
    assert len(figures) >= 10
    assert all(figure.value > 0 and len(figure.source) > 10 for figure in figures)
    assert 10 * 2**30 < row.memory.value < 300 * 10**9
    assert row.peak("bfloat16") > row.peak("float32") >= row.peak("float64")
    assert row.link.value > row.nic.value


@pytest.mark.parametrize(
    ("label", "row"),
    [
        ("Tesla-V100-SXM2-32GB", "V100"), ("NVIDIA-A100-SXM4-80GB", "A100-80"),
        ("A100-SXM4-40GB", "A100-40"), ("NVIDIA-H100-80GB-HBM3", "H100"),
        ("NVIDIA-H100-PCIe", "H100-PCIe"), ("NVIDIA-H200", "H200"), ("NVIDIA-B200", "B200"),
        ("NVIDIA-GB200", "GB200"), ("NVIDIA-GB300", "GB300"),
        ("NVIDIA-H100-80GB-HBM3-SHARED", "H100"),
    ],
)  # fmt: skip
def test_product_labels_choose_the_row(label: str, row: str) -> None:
    found = accelerator_of({"nvidia.com/gpu.product": label})
    assert found is CATALOGUE[row]


def test_amd_labels_as_well() -> None:
    label = {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"}
    assert accelerator_of(label) is CATALOGUE["MI300X"]


@pytest.mark.parametrize(
    "labels",
    [{}, {"nvidia.com/gpu.product": ""}, {"nvidia.com/gpu.product": "NVIDIA-GeForce-RTX-4090"},
     {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"}, {"gpu": "NVIDIA-H100"}],
)  # fmt: skip
def test_other_labels_choose_none(labels: dict[str, str]) -> None:
    assert accelerator_of(labels) is None


def test_names_in_any_case_and_aliases() -> None:
    assert accelerator("h100").name == accelerator("H100-SXM").name == "H100"
    assert all(accelerator(alias).name.lower() == name for alias, name in ALIASES.items())


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"no GPU is named 'H10'.*did you mean H100\?.*V100"):
        accelerator("H10")


def test_servers_of_another_size() -> None:
    half = CATALOGUE["H100"].in_nodes_of(4)
    assert (half.node.value, half.domain.value) == (4, 4)
    rack = CATALOGUE["GB200"].in_nodes_of(2)
    assert (rack.node.value, rack.domain.value) == (2, 72)
