"""The environment variables of the pod contract, read once at the start."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from llmtrain_core.api import env as names
from llmtrain_trainer.errors import InputError

MetricsDetail = Literal["basic", "full"]
"""Detail of the durations in `/metrics`: sum and count, or histograms."""

RdmaUse = Literal["", "required", "preferred"]
"""Whether the job uses RDMA. If it is preferred, the ranks use TCP where it is not possible."""

_REMEDY = "start the pod through the operator, or set the variables of the pod contract"


@dataclass(frozen=True, slots=True)
class PodEnvironment:
    """What the operator sets for this pod."""

    job_file: Path
    ranks: tuple[int, ...]
    """Global ranks of this pod's processes, in order of local rank."""
    world_size: int
    attempt: int
    pod_ip: str
    node_name: str
    port: int
    work_dir: Path
    master_addr: str
    master_port: int
    termination_log: Path
    metrics: MetricsDetail
    rdma: RdmaUse = ""
    network_row: str = ""
    """Row of the table of networks that the placement has; empty if it is not known."""

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> PodEnvironment:
        """Read the environment. Raises InputError if a variable is missing or malformed."""

        def value(name: str, default: str | None = None) -> str:
            found = environ.get(name) or default
            if found is None:
                raise _invalid(name, "it is not set")
            return found

        def number(name: str, default: str | None = None) -> int:
            text = value(name, default)
            if not text.isascii() or not text.isdigit():
                raise _invalid(name, f"{text[:64]!r} is not a number")
            return int(text)

        world = number(names.WORLD_SIZE)
        ranks = _ranks(value(names.RANKS), world)
        return cls(
            job_file=Path(value(names.JOB_FILE, names.JOB_FILE_PATH)),
            ranks=ranks,
            world_size=world,
            attempt=number(names.ATTEMPT, "0"),
            pod_ip=value(names.POD_IP),
            node_name=value(names.NODE_NAME, "unknown"),
            port=number(names.PORT, str(names.HTTP_PORT)),
            work_dir=Path(value(names.WORK_DIR, names.WORK_DIR_PATH)),
            master_addr=value(names.MASTER_ADDR),
            master_port=number(names.MASTER_PORT, str(names.RENDEZVOUS_PORT)),
            termination_log=termination_log(environ),
            metrics=_metrics_detail(environ.get(names.METRICS) or "basic"),
            rdma=_rdma_use(environ.get(names.RDMA) or ""),
            network_row=environ.get(names.NETWORK_ROW) or "",
        )


def termination_log(environ: Mapping[str, str]) -> Path:
    """Return the path of the termination message, which is needed even if the rest is invalid."""
    return Path(environ.get(names.TERMINATION_LOG) or names.TERMINATION_LOG_PATH)


def interface_of(address: str, fallback: str = "eth0") -> str:
    """Return the name of the network interface that carries an IPv4 address.

    gloo and NCCL otherwise use the interface of the host name, which in a pod may not resolve or
    may resolve to the wrong network.
    """
    if address.startswith("127."):
        return "lo"
    for _, interface in socket.if_nameindex():
        if address in _addresses(interface):
            return interface
    return fallback


def _addresses(interface: str) -> list[str]:
    import fcntl  # Linux only, like pods; the module itself stays importable anywhere
    import struct

    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as query:
        try:
            answer = fcntl.ioctl(query.fileno(), 0x8915, request)  # SIOCGIFADDR
        except OSError:
            return []
    return [socket.inet_ntoa(answer[20:24])]


def _ranks(text: str, world: int) -> tuple[int, ...]:
    try:
        ranks = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise _invalid(names.RANKS, f"{text[:64]!r} is not a list of numbers") from None
    if len(set(ranks)) != len(ranks) or not all(0 <= rank < world for rank in ranks):
        raise _invalid(names.RANKS, f"{text[:64]!r} are not distinct ranks below {world}")
    return ranks


def _metrics_detail(text: str) -> MetricsDetail:
    allowed: tuple[MetricsDetail, ...] = get_args(MetricsDetail)
    for detail in allowed:
        if text == detail:
            return detail
    problem = f"{text[:64]!r} is not one of {', '.join(allowed)}"
    raise _invalid(names.METRICS, problem, "correct it in spec.workers.env, or remove it")


def _rdma_use(text: str) -> RdmaUse:
    allowed: tuple[RdmaUse, ...] = get_args(RdmaUse)
    for use in allowed:
        if text == use:
            return use
    raise _invalid(names.RDMA, f"{text[:64]!r} is not one of required, preferred")


def _invalid(name: str, problem: str, remedy: str = _REMEDY) -> InputError:
    return InputError(
        "InvalidEnvironment", f"environment variable {name}: {problem}", remedy=remedy
    )
