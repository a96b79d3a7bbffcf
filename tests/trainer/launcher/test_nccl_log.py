"""NCCL's log: what rank 0 reads from it, and where NCCL writes it.

The lines have the formats of the sources that `nccl_log` names, with invented devices. The NCCL
that writes here is the one of the trainer image, but without a GPU it does not get as far as a
network. That it has the formats is tested, and that it writes to the file, but not that it writes
these lines there.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llmtrain_trainer.runtime.pod_env import PodEnvironment
from llmtrain_trainer.runtime.reports import HeartbeatReport, NcclReport, StepReport
from llmtrain_trainer.worker import nccl_log
from llmtrain_trainer.worker.nccl_log import (
    nccl_network,
    report_after_first_step,
    start_log,
    take_log,
    why_unexpected,
)

pytestmark = pytest.mark.unit


def log_of(*messages: str) -> str:
    """Return a log with messages of level INFO between others."""
    lines = [f"node-0:71:93 [0] NCCL INFO {message}\n" for message in messages]
    warning = "\n[2026-01-01 00:00:00] node-0:71:93 [0] init.cc:9 (f) NCCL WARN Using network x\n"
    channel = "node-0:71:93 [0] NCCL INFO Channel 00/0 : 0[0] -> 8[0] [send] via NET/IB/0\n"
    return f"{warning}{''.join(lines)}{channel}"


INFINIBAND = [
    "NCCL version 2.27.5+cuda12.9",
    "NET/IB : Using [0]mlx5_0:1/IB [1]mlx5_1:1/IB [RO]; OOB eth0:10.0.0.7<0>",
    "Using network IB",
]
SOCKET = ["NET/Socket : Using [0]eth0:10.0.0.7<0> [1]net1:fe80::1%net1<0>", "Using network Socket"]
FORMATS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "2.18 to 2.29, InfiniBand": (
        INFINIBAND,
        {
            "version": "2.27.5+cuda12.9",
            "network": "IB",
            "devices": ["mlx5_0:1/IB", "mlx5_1:1/IB"],
        },
    ),
    "2.30 with rail and plane, RoCE": (
        [
            "NCCL version 2.30.7+cuda13.0",
            "NCCL git version HEAD 1234567",
            "NET/IB : Using [0]mlx5_0:1:3:1/RoCE ; OOB eth0:10.0.0.7<0>",
            "Using network IB",
        ],
        {"version": "2.30.7+cuda13.0", "network": "IB", "devices": ["mlx5_0:1:3:1/RoCE"]},
    ),
    "2.18 to 2.23, no InfiniBand": (
        ["NET/IB : No device found.", *SOCKET],
        {"network": "Socket", "devices": ["eth0", "net1"]},
    ),
    "2.24 and later, no InfiniBand": (
        ["NET/IB : No device found.", "NET/IB : Using ; OOB eth0:10.0.0.7<0>", *SOCKET],
        {"network": "Socket", "devices": ["eth0", "net1"]},
    ),
    "RDMA SHARP plugin": (
        [
            "NET/IB : Using [0]mlx5_0:1/IB/SHARP [RO]; OOB eth0:10.0.0.7<0>",
            "Using network IBext_v11",
        ],
        {"network": "IBext_v11", "devices": ["mlx5_0:1/IB/SHARP"]},
    ),
    "OFI plugin 1.9 to 1.13": (
        ["NET/OFI Selected Provider is efa (found 4 nics)", "Using network AWS Libfabric"],
        {"network": "AWS Libfabric", "provider": "efa"},
    ),
    "OFI plugin from 1.14": (
        [
            "NET/OFI Selected provider is efa, fabric is efa-direct (found 32 nics)",
            "Using network Libfabric",
        ],
        {"network": "Libfabric", "provider": "efa"},
    ),
    "OFI plugin that NCCL does not use": (
        ["NET/OFI Selected provider is tcp, fabric is x (found 1 nics)", *SOCKET],
        {"network": "Socket", "devices": ["eth0", "net1"]},
    ),
    "RCCL": (
        [
            "RCCL version : 2.20.5-HEAD:abc",
            "NET/IB : Using [0]rdma0:1/RoCE [RO]; OOB eth0:10.0.0.7<0>",
            "Using network IB",
        ],
        {"version": "2.20.5-HEAD:abc", "network": "IB", "devices": ["rdma0:1/RoCE"]},
    ),
    "a plugin without devices in the log": (["Using network gIB"], {"network": "gIB"}),
}


@pytest.mark.parametrize("case", FORMATS)
def test_each_format_is_read(case: str) -> None:
    messages, expected = FORMATS[case]
    found = nccl_network(log_of(*messages))
    assert found is not None and found.to_wire() == expected


def test_a_log_without_a_network_says_nothing() -> None:
    assert nccl_network("") is None
    assert nccl_network(log_of(*INFINIBAND[:2])) is None
    assert nccl_network(log_of("Using network \x1b\x07")) is None


def test_texts_and_lists_are_bounded() -> None:
    many = " ".join(f"[{number}]{'x' * 999}\x1b[31m{number}" for number in range(99))
    found = nccl_network(
        log_of(f"NCCL version {'9' * 999}", f"NET/IB : Using {many}", "Using network IB")
    )
    assert found is not None and found.devices is not None and found.version is not None
    assert len(found.devices) == 32 and len(found.version) == 64
    assert all(len(text) <= 64 and text.isprintable() for text in found.devices)


@pytest.mark.parametrize(
    ("messages", "devices"),
    [
        (["NET/Socket : Using [0]:10.0.0.7<0>", "Using network Socket"], None),
        (["NET/IB : Using [0]\x1b\x07 [RO]", "Using network IB"], None),
        (
            ["NET/IB : Using " + "[0]\x07 " * 40 + "[40]mlx5_0:1/IB [RO]", "Using network IB"],
            ["mlx5_0:1/IB"],
        ),
    ],
)
def test_a_device_without_a_name_is_left_out(
    messages: list[str], devices: list[str] | None
) -> None:
    found = nccl_network(log_of(*messages))
    assert found is not None and found.devices == devices


@pytest.mark.parametrize("name", ["NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE"])
def test_the_settings_of_the_user_stay_as_they_are(name: str, tmp_path: Path) -> None:
    environ = {name: "WARN"}
    assert not start_log(tmp_path / "nccl.log", environ)
    assert environ == {name: "WARN"} and not list(tmp_path.iterdir())


def test_the_configuration_of_nccl_stays_in_effect(tmp_path: Path) -> None:
    """A variable would override it, and its warnings would not be in the log of the pod."""
    configuration = tmp_path / "nccl.conf"
    configuration.write_text("NCCL_DEBUG=WARN\n")
    environ = {"NCCL_CONF_FILE": str(configuration)}
    assert not start_log(tmp_path / "nccl.log", environ)
    assert list(environ) == ["NCCL_CONF_FILE"]
    configuration.write_text("NCCL_IB_HCA=mlx5\n")
    assert start_log(tmp_path / "nccl.log", environ)
    assert environ["NCCL_DEBUG_FILE"] == str(tmp_path / "nccl.log")


def test_without_the_file_nccl_would_log_to_the_log_of_the_pod(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    assert not start_log(tmp_path / "no-folder" / "nccl.log", environ)
    assert not environ


def library() -> Path:
    """Return the NCCL of the trainer image."""
    (packages,) = find_spec("nvidia.nccl").submodule_search_locations  # type: ignore[union-attr]
    return Path(packages) / "lib" / "libnccl.so.2"


def test_nccl_of_the_trainer_image_has_these_formats() -> None:
    """They are those of printf, of which Python has enough to make the lines from them."""
    values: dict[str, tuple[object, ...]] = {
        "NET/IB : Using%s %s; OOB %s:%s": (" [0]mlx5_0:1/IB", "[RO]", "eth0", "10.0.0.7<0>"),
        "NET/Socket : Using%s": (" [0]eth0:10.0.0.7<0>",),
        "Using network %s": ("Socket",),
    }
    device, version, entry = " [%d]%s:%s", "NCCL version ", "[%d] NCCL INFO %s\n"
    with (
        library().open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for text in (*values, device, entry):
            assert content.find(text.encode() + b"\0") >= 0, text
        start = content.find(version.encode() + b"2.")
        version = content[start : content.find(b"\0", start)].decode()
    log = "".join(entry % (0, text) for text in (version, *(k % v for k, v in values.items())))
    found = nccl_network(log)
    assert found is not None and found.version is not None and found.version[:2] == "2."
    assert (found.network, found.devices) == ("Socket", ["eth0"])


USES_NCCL = """
import ctypes, json, os, sys
from pathlib import Path
from llmtrain_trainer.worker.nccl_log import start_log, take_log

class Id(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_char * 128)]

def warn():  # there is no GPU
    nccl.ncclCommInitRank(ctypes.byref(ctypes.c_void_p()), 1, Id(), 0)

path = Path(sys.argv[2])
start_log(path, os.environ)
nccl = ctypes.CDLL(sys.argv[1])
nccl.ncclCommInitRank.argtypes = [ctypes.c_void_p, ctypes.c_int, Id, ctypes.c_int]
warn()
targets = lambda: sorted(os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir())
found = {"before": targets(), "log": take_log(path), "exists": path.exists(), "after": targets()}
warn()
nccl.ncclGetLastError.restype = ctypes.c_char_p
found |= {"again": path.exists(), "error": nccl.ncclGetLastError(None).decode()}
Path(sys.argv[3]).write_text(json.dumps(found))
"""


def use_nccl(path: Path, **environ: str) -> tuple[dict[str, Any], str]:
    """Return what a process finds that uses NCCL with its log at a path, and its output."""
    result = path.parent / "found.json"
    ended = subprocess.run(
        [sys.executable, "-c", USES_NCCL, str(library()), str(path), str(result)],
        env={"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "", **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    found: dict[str, Any] = json.loads(result.read_text())
    return found, ended.stdout + ended.stderr


def test_nccl_writes_to_the_file_until_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "100%h of it.log"
    found, output = use_nccl(path)
    assert " NCCL INFO " in found["log"] and str(path) in found["before"]
    assert not found["exists"] and not found["again"]
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    assert not [target for target in found["after"] if "100%h" in target], "the rest goes nowhere"
    assert output == ""
    assert "failure" in found["error"], "the error of a collective still has the last warning"


def test_warnings_that_the_user_asks_for_are_in_the_log_of_the_pod(tmp_path: Path) -> None:
    found, output = use_nccl(tmp_path / "nccl.log", NCCL_DEBUG="WARN")
    assert found["log"] == "" and output.count("NCCL WARN") >= 2


def test_a_large_log_is_read_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "nccl.log"
    text = log_of(*INFINIBAND)
    path.write_text(text + "x" * 1000)
    monkeypatch.setattr(nccl_log, "READ_BYTES", len(text))
    assert take_log(path) == text and take_log(path) == ""


def pod(folder: Path, **changes: Any) -> PodEnvironment:
    found = PodEnvironment.read(
        {
            "LLMTRAIN_RANKS": "0,1",
            "LLMTRAIN_POD_IP": "127.0.0.1",
            "LLMTRAIN_WORK_DIR": str(folder),
            "LLMTRAIN_RDMA": "preferred",
            "MASTER_ADDR": "127.0.0.1",
            "WORLD_SIZE": "4",
        }
    )
    return replace(found, **changes)


def test_tcp_of_pods_with_other_devices_is_unexpected(tmp_path: Path) -> None:
    tcp, infiniband = nccl_network(log_of(*SOCKET)), nccl_network(log_of(*INFINIBAND))
    assert tcp is not None and infiniband is not None
    gang = pod(tmp_path)
    text = why_unexpected(tcp, gang, {})
    assert text.startswith("TcpInsteadOfRdma: ") and "Socket (eth0, net1)" in text
    assert "network.profile" in text and len(text) < 512
    required = why_unexpected(tcp, pod(tmp_path, rdma="required"), {})
    assert "Socket" in required and "network.profile" not in required, "the job names one"
    assert why_unexpected(infiniband, gang, {}) == ""
    assert why_unexpected(tcp, pod(tmp_path, rdma=""), {}) == ""
    assert why_unexpected(tcp, pod(tmp_path, world_size=2), {}) == "", "within one pod"
    chosen = [("NCCL_NET", text) for text in ("Socket", "socket")]
    chosen += [("NCCL_IB_DISABLE", text) for text in ("1", "2", "-1", "0x1", " 10")]
    for name, value in chosen:
        assert why_unexpected(tcp, gang, {name: value}) == "", "the job chose it"
    for value in ("0", "", "0x0", "no"):
        assert why_unexpected(tcp, gang, {"NCCL_IB_DISABLE": value}) == text
    assert "Socket although" in why_unexpected(tcp.model_copy(update={"devices": None}), gang, {})


def test_the_log_is_read_once_after_the_first_step(tmp_path: Path) -> None:
    path, sent = tmp_path / "nccl.log", list[Any]()
    send = report_after_first_step(sent.append, path, pod(tmp_path))
    path.write_text(log_of(*INFINIBAND))
    step = StepReport(
        step=1, seconds=1.0, phases={}, tokens=8, loss=2.0, grad_norm=1.0, learning_rate=0.1
    )
    send(HeartbeatReport())
    assert path.exists()
    send(step)
    send(replace(step, step=2))
    assert [type(report) for report in sent] == [
        HeartbeatReport,
        StepReport,
        NcclReport,
        StepReport,
    ]
    assert sent[2].network.network == "IB" and sent[2].why_unexpected == ""
    assert not path.exists()


def test_a_log_that_cannot_be_read_does_not_end_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: str) -> None:
        raise ValueError("an unknown format")

    monkeypatch.setattr(nccl_log, "nccl_network", fail)
    sent = list[Any]()
    send = report_after_first_step(sent.append, tmp_path / "nccl.log", pod(tmp_path))
    send(StepReport(1, 1.0, {}, tokens=8, loss=2.0, grad_norm=1.0, learning_rate=0.1))
    assert [type(report) for report in sent] == [StepReport]
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "an unknown format" in caplog.text
