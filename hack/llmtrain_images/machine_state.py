"""Settings of the kernel and the firewall that a Docker engine changes: record and restore them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

SYSCTLS = (
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "net/ipv4/ip_forward",
    "net/bridge/bridge-nf-call-iptables",
    "net/netfilter/nf_conntrack_max",
)
"""What dockerd, kubelet and kube-proxy set. A file may be missing."""
_PROC = Path("/proc/sys")
_CGROUPS = Path("/sys/fs/cgroup")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Table:
    """The chains of a table with their policies, and its rules in order."""

    chains: dict[str, str] = field(default_factory=dict)
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MachineState:
    """What there was before an engine was started."""

    boot_id: str
    sysctls: dict[str, str]
    tables: dict[str, Table]
    bridge: bool
    """Whether there was a docker0."""
    cgroups: tuple[str, ...]
    """Those of dockerd's default name."""

    def to_json(self) -> str:
        """Return a text for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> MachineState:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        tables = {
            name: Table(table["chains"], tuple(table["rules"]))
            for name, table in fields["tables"].items()
        }
        return cls(**fields | {"tables": tables, "cgroups": tuple(fields["cgroups"])})


def record() -> MachineState:
    """Return the present state."""
    return MachineState(
        boot_id=_BOOT_ID.read_text().strip(),
        sysctls={name: _read(name) for name in SYSCTLS if (_PROC / name).exists()},
        tables=parse(_iptables("iptables-save")),
        bridge=_has_bridge(),
        cgroups=tuple(str(path) for path in _cgroups()),
    )


def restore(before: MachineState) -> None:
    """Bring back the recorded state. After a reboot there is nothing to restore."""
    if before.boot_id != _BOOT_ID.read_text().strip():
        return
    for command in undo(before.tables, parse(_iptables("iptables-save"))):
        _iptables("iptables", "-w", *command)
    if _has_bridge() and not before.bridge:
        subprocess.run(["ip", "link", "delete", "docker0"], check=True, capture_output=True)
    for name, value in before.sysctls.items():
        if _read(name) != value:
            (_PROC / name).write_text(value)
    for path in _cgroups():
        if str(path) not in before.cgroups:
            _remove_cgroup(path)


def parse(text: str) -> dict[str, Table]:
    """Read the output of iptables-save."""
    chains: dict[str, dict[str, str]] = {}
    rules: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("*"):
            name = line[1:].strip()
            chains[name], rules[name] = {}, []
        elif line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            chains[name][chain] = policy
        elif line.startswith("-A "):
            rules[name].append(line)
    return {table: Table(chains[table], tuple(rules[table])) for table in chains}


def undo(before: dict[str, Table], after: dict[str, Table]) -> Iterator[list[str]]:
    """Yield arguments of iptables that remove what is new and set the policies of before.

    Rules come first, because a chain with a rule that jumps to it cannot be deleted.
    """
    for name, now in after.items():
        old = before.get(name, Table())
        new_chains = [chain for chain in now.chains if chain not in old.chains and _own(now, chain)]
        remaining = list(old.rules)
        for rule in now.rules:
            if rule in remaining:
                remaining.remove(rule)
            elif rule.split()[1] not in new_chains:
                yield ["-t", name, "-D", *_words(rule.removeprefix("-A "))]
        for option in ("-F", "-X"):
            yield from (["-t", name, option, chain] for chain in new_chains)
        for chain, policy in now.chains.items():
            wanted = old.chains.get(chain, "ACCEPT")
            if not _own(now, chain) and policy != wanted:
                yield ["-t", name, "-P", chain, wanted]


def _own(table: Table, chain: str) -> bool:
    """Return True for a chain that is not built in: it has no policy."""
    return table.chains[chain] == "-"


def _words(rule: str) -> list[str]:
    """Split a rule as a shell would; iptables-save quotes words with spaces."""
    found = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', rule)
    return [re.sub(r"\\(.)", r"\1", quoted) or plain for quoted, plain in found]


def _iptables(*command: str) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


def _read(name: str) -> str:
    return (_PROC / name).read_text().strip()


def _has_bridge() -> bool:
    return Path("/sys/class/net/docker0").exists()


def _cgroups() -> list[Path]:
    return [*_CGROUPS.glob("docker"), *_CGROUPS.glob("*/docker")]


def _remove_cgroup(path: Path) -> None:
    """Remove a cgroup without processes, and those below it."""
    for child in [entry for entry in path.iterdir() if entry.is_dir()]:
        _remove_cgroup(child)
    path.rmdir()
