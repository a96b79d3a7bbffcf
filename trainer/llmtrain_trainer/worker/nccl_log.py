"""What NCCL says about the network that it uses.

NCCL tells it only in its log. So NCCL of rank 0 logs its start to a file of the pod, unless the
user has set its log. After the first step rank 0 reads the file and removes it, and whatever NCCL
logs later goes to /dev/null. Without `NCCL_DEBUG`, NCCL logs nothing, not even warnings, and it
keeps the last warning for the error that a collective raises in any case. So nothing is lost.

The formats are those of
- NVIDIA/nccl v2.18.1 to v2.30.7: `NCCL INFO` in src/debug.cc, the version and `Using network` in
  src/init.cc (before v2.22 the version is also printed), `NET/Socket : Using` in
  src/transport/net_socket.cc, `NET/IB : Using` in src/transport/net_ib.cc (v2.29 and later:
  net_ib/init.cc; v2.30 adds rail and plane to the port),
- ROCm/rccl 2.20.5 (src/init.cc): `RCCL version :`, the rest is the same,
- Mellanox/nccl-rdma-sharp-plugins v2.1.0 (src/p2p_plugin.c): the network `IBext_v11`, whose
  devices are in a line `NET/IB : Using`, and
- aws/aws-ofi-nccl v1.9.2 to v1.21.1 (src/nccl_ofi_net.c or .cpp): `NET/OFI Selected provider is`.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from llmtrain_core.api.conditions import clean_text
from llmtrain_core.api.defaults import MAX_NCCL_DEVICES, NCCL_TEXT_LENGTH
from llmtrain_core.api.status.network import NcclNetwork
from llmtrain_trainer.runtime.pod_env import PodEnvironment
from llmtrain_trainer.runtime.reports import NcclReport, Report, Send, StepReport

log = logging.getLogger(__name__)

READ_BYTES = 1 << 20
"""How much of the log is read. What is looked for is in the lines of the first communicator."""

TCP_INSTEAD_OF_RDMA = "TcpInsteadOfRdma"
"""Reason of the text that says that NCCL uses TCP although the pods have other devices."""

_LOG_VARIABLES = ("NCCL_DEBUG", "NCCL_DEBUG_SUBSYS", "NCCL_DEBUG_FILE")
_CONFIG_FILE, _CONFIG_BYTES = Path("/etc/nccl.conf"), 1 << 16
_TCP = "Socket"

_ENTRY = re.compile(r"NCCL INFO (.*)")
_VERSION = re.compile(r"(?:NCCL version|RCCL version :) (\S+)")
_NETWORK = re.compile(r"Using network (.+)")
_DEVICES = re.compile(r"NET/(\w+) : Using (.*)")
_DEVICE = re.compile(r"\[\d+\]([^\s;]+)")
_PROVIDER = re.compile(r"NET/OFI Selected [Pp]rovider is ([^\s,]+)")
_NOT_ZERO = re.compile(r"\s*[-+]?(?:0[xX]0*[1-9a-fA-F]|0*[1-9])")
"""An integer in the notation of C that is not zero."""


def start_log(path: Path, environ: MutableMapping[str, str]) -> bool:
    """Let NCCL log its start to a file. Does nothing, and returns False, if the user has set it.

    Call it before NCCL reads the variables, which it does once in a process.
    """
    if any(name in environ for name in _LOG_VARIABLES) or _is_configured(environ):
        return False
    try:
        path.write_bytes(b"")
    except OSError:  # NCCL would log to stdout
        return False
    file = str(path).replace("%", "%%")
    environ.update(zip(_LOG_VARIABLES, ("INFO", "INIT", file), strict=True))
    return True


def take_log(path: Path) -> str:
    """Return the start of NCCL's log, remove the file, and discard what NCCL logs from now on.

    Empty if there is no log.
    """
    try:
        with path.open("rb") as file:
            content = file.read(READ_BYTES)
        _discard(path)
        path.unlink()
    except OSError:
        return ""
    return content.decode(errors="replace")


def nccl_network(text: str) -> NcclNetwork | None:
    """Return what a log says; None if it does not name a network."""
    found: dict[str, str] = {}
    devices: dict[str, list[str]] = {}
    for line in text.splitlines():
        entry = _ENTRY.search(line)
        if entry is None:
            continue
        message = entry[1]
        for key, pattern in (("version", _VERSION), ("network", _NETWORK), ("provider", _PROVIDER)):
            match = pattern.match(message)
            if match is not None:
                found.setdefault(key, match[1])
        match = _DEVICES.match(message)
        if match is not None:
            devices.setdefault(match[1], _DEVICE.findall(match[2]))
    network = _short(found.get("network", ""))
    if not network:
        return None
    names = devices.get("IB" if network.startswith("IB") else network, [])
    if network == _TCP:  # the rest is the address of the interface
        names = [name.partition(":")[0] for name in names]
    return NcclNetwork(
        version=_short(found.get("version", "")) or None,
        network=network,
        devices=list(filter(None, map(_short, names)))[:MAX_NCCL_DEVICES] or None,
        provider=_short(found.get("provider", "")) or None if "Libfabric" in network else None,
    )


def why_unexpected(found: NcclNetwork, pod: PodEnvironment, environ: Mapping[str, str]) -> str:
    """Return why the network is not the one of the pods; empty if it is, or if the job chose it.

    Within one pod NCCL names a network, too, but transfers nothing over it.
    """
    chosen = environ.get("NCCL_NET", "").lower() == _TCP.lower() or _NOT_ZERO.match(
        environ.get("NCCL_IB_DISABLE", "")
    )
    if found.network != _TCP or not pod.rdma or chosen or len(pod.ranks) == pod.world_size:
        return ""
    devices = f" ({', '.join(found.devices)[:128]})" if found.devices else ""
    text = (
        f"{TCP_INSTEAD_OF_RDMA}: NCCL uses {found.network}{devices}"
        " although the pods have devices for RDMA; NCCL_DEBUG: INFO in network.nccl shows why in"
        " the log of rank 0"
    )
    if pod.rdma == "preferred":
        text += "; with network.profile infiniband, roce or efa the job fails instead"
    return text


def report_after_first_step(send: Send, path: Path, pod: PodEnvironment) -> Send:
    """Return a `send` that reports what the log says after the report of the first step."""
    is_due = True

    def send_all(report: Report) -> None:
        nonlocal is_due
        send(report)
        if is_due and isinstance(report, StepReport):
            is_due = False
            try:
                found = nccl_network(take_log(path))
                why = why_unexpected(found, pod, os.environ) if found else ""
            except Exception:  # the report only informs
                log.warning("NCCL's log cannot be read", exc_info=True)
                return
            if why:
                log.warning("%s", why)
            if found is not None:
                send(NcclReport(found, why))

    return send_all


def _short(text: str) -> str:
    return clean_text(text, NCCL_TEXT_LENGTH)


def _is_configured(environ: Mapping[str, str]) -> bool:
    """Return whether a configuration file of NCCL sets its log; variables would override it."""
    files = [_CONFIG_FILE]
    if environ.get("NCCL_CONF_FILE"):
        files.append(Path(environ["NCCL_CONF_FILE"]))
    with suppress(KeyError):  # a user ID without an entry in /etc/passwd
        files.append(Path(pwd.getpwuid(os.getuid()).pw_dir) / ".nccl.conf")
    for path in files:
        with suppress(OSError), path.open("rb") as file:
            if b"NCCL_DEBUG" in file.read(_CONFIG_BYTES):
                return True
    return False


def _discard(path: Path) -> None:
    """Let the descriptors of this process that lead to a file lead to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(OSError):  # it is closed, or is no file
                if entry.samefile(path):
                    os.dup2(null, int(entry.name))
    finally:
        os.close(null)
