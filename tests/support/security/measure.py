"""What an attack does to the others: how fast their jobs start, memory and probes of the operator.

A job of a second tenant must start within twice its usual time, the median of five starts in the
same run without the attack. A busy machine may add some seconds.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.support.operator_harness.harness import OperatorProcess
from tests.support.security.tenants import Tenant

USUAL_STARTS = 5
STARTS = 3
"""Starts during an attack, whose median counts."""
ROUNDS = 3
"""Rounds of `STARTS`: a machine that is busy for a moment is no attack."""
LOAD_SECONDS = 5.0
"""Seconds that the load of the machine may add. A job that an attack blocks starts never, or when a
timeout of many more seconds ends."""
MEMORY_LIMIT_MIB = 512


@dataclass(slots=True)
class StartTimes:
    """Times of starts with one operator process."""

    usual: float | None = None
    during: dict[str, float] = field(default_factory=dict)
    """The median by attack."""

    async def measure_usual(self, tenant: Tenant) -> float:
        """Return the usual time of a start, measured once. Call it before the first attack."""
        if self.usual is None:
            found = [await tenant.start_seconds(f"usual-{i}") for i in range(USUAL_STARTS)]
            self.usual = median(found)
        return self.usual

    async def check(self, tenant: Tenant, attack: str) -> None:
        """Fail unless jobs of the tenant start within twice the usual time and LOAD_SECONDS."""
        assert self.usual is not None, "measure the usual time before the attack"
        limit = 2 * self.usual + LOAD_SECONDS
        medians: list[float] = []
        for number in range(ROUNDS):
            starts = [await tenant.start_seconds(f"during-{number}-{i}") for i in range(STARTS)]
            medians.append(median(starts))
            if medians[-1] <= limit:
                break
        self.during[attack] = min(medians)
        assert min(medians) <= limit, (
            f"{attack}: jobs of another tenant start in {medians} s, usually in {self.usual:.2f} s"
        )


class Bystanders:
    """Who must not notice an attack: a second tenant, and the operator itself."""

    def __init__(
        self,
        tenant: Tenant,
        operator: OperatorProcess,
        starts: StartTimes,
        *,
        since_start: bool = False,
    ):
        """`since_start`: the peak of memory is that since the start of the operator."""
        self.tenant = tenant
        self.operator = operator
        self.starts = starts
        self._pid = operator.pid
        if not since_start:
            # The kernel forgets the peak so far, which may be of another test.
            Path(f"/proc/{self._pid}/clear_refs").write_text("5")

    def peak_mib(self) -> float:
        """Return the most memory that the operator has had since the begin of the test."""
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
        raise LookupError("no VmHWM: the operator has ended")

    async def are_unharmed(self, attack: str, limit_mib: float = MEMORY_LIMIT_MIB) -> None:
        """Fail unless the other tenant's jobs start as usual and the operator is well.

        Call it while the objects of the attack exist.
        """
        await self.starts.check(self.tenant, attack)
        operator = self.operator
        assert operator.alive() and operator.pid == self._pid, operator.tail()
        for path in ("/healthz", "/readyz"):
            status = await asyncio.to_thread(operator.ask, operator.health_port, path)
            assert status == 200, (path, status, operator.tail())
        assert self.peak_mib() < limit_mib, f"{attack}: {self.peak_mib():.0f} MiB"
