"""The NVML monitor with a library with the driver's name and calls, made here by the C compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer.nvml import build_nvml

pytestmark = pytest.mark.unit

READ = """
import json
from dataclasses import asdict
from llmtrain_trainer.metrics.gpu_use import open_monitor
monitor = open_monitor()
reads = [[asdict(use) for use in monitor.read([])] for _ in range(5)]
print(json.dumps([monitor.source, [asdict(name) for name in monitor.names()], reads]))
"""

XIDS = """
import json
from llmtrain_trainer.metrics.gpu_use import open_monitor
monitor = open_monitor()
print(json.dumps([[[xid.code, xid.action] for xid in monitor.xids()] for _ in range(2)]))
"""

PAGE = """
from llmtrain_trainer.metrics.gpu_use import open_monitor
from llmtrain_trainer.launcher.status_tracker import StatusTracker
monitor, tracker = open_monitor(), StatusTracker((0, 1), attempt=0)
tracker.metrics.set_device_names(monitor.names())
for _ in range(3):
    tracker.on_devices(monitor.source, monitor.read([]))
print(tracker.routes()["/metrics"]().body.decode())
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the stand-in; the folder it is in."""
    return build_nvml(tmp_path_factory.mktemp("driver"))


def _run(program: str, library: Path, **environment: str) -> str:
    pytest.importorskip("pynvml")
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_LIBRARY_PATH": str(library), **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def _read(library: Path, **environment: str) -> Any:
    return json.loads(_run(READ, library, **environment))


def test_each_device_has_the_figures_that_it_supports(library: Path) -> None:
    source, names, reads = _read(library)
    assert source == "nvml"
    assert names == [
        {"uuid": "GPU-0", "model": "NVIDIA H100 80GB HBM3"},
        {"uuid": "GPU-1", "model": "NVIDIA A100-SXM4-80GB"},
    ]
    for number, (first, second) in enumerate(reads):
        # one sample when the monitor was created, and one for every read
        assert first == {
            "gpu": 0,
            "ratio": 1.0,
            "memory": {"used": 1000, "total": 80000},
            "activity": {"sm": 0.625, "tensor": pytest.approx((42 + number) / 100)},
            "joules": 5 + 1.5 * number,
        }
        assert second == {
            "gpu": 1,
            "ratio": 0.5,
            "memory": {"used": 2000, "total": 80000},
            "activity": {},
            "joules": None,
        }


def test_devices_are_exported_with_the_labels_of_dcgm_exporter(library: Path) -> None:
    page = _run(PAGE, library).splitlines()
    found = {line for line in page if line.startswith("llmtrain_gpu_")}
    assert found == {
        'llmtrain_gpu_info{UUID="GPU-0",gpu="0",modelName="NVIDIA H100 80GB HBM3"} 1.0',
        'llmtrain_gpu_info{UUID="GPU-1",gpu="1",modelName="NVIDIA A100-SXM4-80GB"} 1.0',
        'llmtrain_gpu_utilization_ratio{gpu="0",source="nvml"} 1.0',
        'llmtrain_gpu_utilization_ratio{gpu="1",source="nvml"} 0.5',
        'llmtrain_gpu_memory_bytes{gpu="0",kind="used"} 1000.0',
        'llmtrain_gpu_memory_bytes{gpu="0",kind="total"} 80000.0',
        'llmtrain_gpu_memory_bytes{gpu="1",kind="used"} 2000.0',
        'llmtrain_gpu_memory_bytes{gpu="1",kind="total"} 80000.0',
        'llmtrain_gpu_activity_ratio{gpu="0",unit="sm"} 0.625',
        'llmtrain_gpu_activity_ratio{gpu="0",unit="tensor"} 0.44',
        # counted from the first reading on: two more of 1.5 J each
        'llmtrain_gpu_energy_joules_total{gpu="0"} 3.0',
    }


def test_a_device_without_figures_does_not_hide_the_others(library: Path) -> None:
    _, names, reads = _read(library, INSTANCES="1")
    assert len(names) == 2
    assert [[use["gpu"] for use in read] for read in reads] == [[0]] * 5


@pytest.mark.parametrize(
    ("driver", "first"),
    [
        ({}, []),
        ({"XIDS": "31,79"}, [[31, "restart the job"], [79, "replace the node"]]),
        ({"XIDS": "95", "LOST": "1"}, [[95, "reset the GPU"], [79, "replace the node"]]),
        ({"XIDS": "79", "NO_EVENTS": "1"}, []),
        ({"XIDS": "79", "NO_DEVICE": "1"}, []),
    ],
    ids=["none", "two", "a lost device", "no events", "no device"],
)
def test_each_xid_is_reported_once(
    library: Path, driver: dict[str, str], first: list[list[object]]
) -> None:
    assert json.loads(_run(XIDS, library, **driver)) == [first, []]


def test_the_cpu_is_read_without_a_device(library: Path, tmp_path: Path) -> None:
    assert _read(library, NO_DEVICE="1")[:2] == ["cpu", []]
    assert _read(tmp_path)[:2] == ["cpu", []]


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("NVIDIA GeForce of another year", 0),
    ],
)
def test_the_peak_is_that_of_the_plan(name: str, peak: float) -> None:
    from llmtrain_trainer.metrics.peak_flops import peak_flops

    assert peak_flops(name) == pytest.approx(peak)
