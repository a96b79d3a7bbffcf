"""Run the operator: `python -m llmtrain_operator [--help]`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys

from llmtrain_core.api.untrusted import printable, printable_entry
from llmtrain_operator.config import Config, parse
from llmtrain_operator.controller import Controller, tune_gc
from llmtrain_operator.errors import OperatorError
from llmtrain_operator.handlers import operate
from llmtrain_operator.health import serve
from llmtrain_operator.kube.client import KubeClient, load_configuration
from llmtrain_operator.kube.leader_election import LeaderElector
from llmtrain_operator.kube.lease_thread import LeaseThread
from llmtrain_operator.metrics.registry import Metrics

EXIT_LEASE_LOST = 3
EXIT_TASK_ENDED = 4
SWITCH_INTERVAL_SECONDS = 0.0005
"""The scheduler computes in a thread. With the default of 5 ms, each API request would wait up to
5 ms for the interpreter lock while that thread computes."""
log = logging.getLogger("llmtrain_operator")


class LogFormatter(logging.Formatter):
    """Replaces control characters, and indents all lines of an entry but the first.

    Tenants write a part of the text of entries.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the entry, with its traceback."""
        return printable_entry(super().format(record))


def main() -> None:
    """Entry point of the program."""
    try:
        config = parse(sys.argv[1:])
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        handler = logging.StreamHandler()
        handler.setFormatter(LogFormatter())
        logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run(config))
    except OperatorError as error:
        sys.exit(printable(f"llmtrain-operator: {error}"))


async def run(config: Config) -> None:
    """Acquire the lease, then run the operator until a signal."""
    tune_gc()
    metrics = Metrics()
    configuration = await load_configuration(config.kubeconfig)
    # The lease needs its own client: the writes of the other client are fenced by the lease.
    lease_client = KubeClient(configuration, metrics.requests)
    elector = LeaderElector(
        lease_client,
        config.lease_namespace,
        config.lease,
        config.identity,
        config.timing,
        config.lease_metadata,
    )
    lease = LeaseThread(elector, lease_client, _on_lease_lost, _on_task_ended)
    cluster = KubeClient(configuration, metrics.requests, fence=elector.fence)
    controller = Controller(config, cluster, metrics, _on_task_ended)
    leading = False

    def healthy() -> bool:
        return not leading or (elector.is_leader and controller.alive)

    def ready() -> bool:
        return controller.ready if leading else True

    lease.start()
    try:
        async with serve(config, metrics.registry, healthy, ready):
            await lease.acquire()
            leading = True
            metrics.leader.set(1)
            await operate(controller)
    finally:
        await lease.stop()
        await cluster.close()


def _on_lease_lost() -> None:
    """Exit at once without another await: another process may already be the leader."""
    log.error("lease lost, exiting")
    logging.shutdown()
    os._exit(EXIT_LEASE_LOST)


def _on_task_ended(task: str) -> None:
    """Exit: a leader without one of its tasks does not work, and a restart recreates all tasks."""
    log.error("task %s ended, exiting", task)
    logging.shutdown()
    os._exit(EXIT_TASK_ENDED)


if __name__ == "__main__":
    main()
