"""Run the operator: `python -m llmtrain_operator [--help]`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys

from llmtrain_operator.config import Config, parse
from llmtrain_operator.controller import Runtime, calm_collector, guard
from llmtrain_operator.errors import OperatorError
from llmtrain_operator.handlers import operate
from llmtrain_operator.health import serve
from llmtrain_operator.kube.client import KubeClient, load_configuration
from llmtrain_operator.kube.leader_election import LeaderElector
from llmtrain_operator.metrics import Metrics

EXIT_LEASE_LOST = 3
EXIT_TASK_ENDED = 4
SWITCH_INTERVAL_SECONDS = 0.0005
"""The queue is decided in a thread. With Python's usual 5 ms, each word to the API server would
wait so long for its turn while that thread computes."""
log = logging.getLogger("llmtrain_operator")


def main() -> None:
    """Run as a program."""
    try:
        config = parse(sys.argv[1:])
        sys.setswitchinterval(SWITCH_INTERVAL_SECONDS)
        logging.basicConfig(
            level=config.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s"
        )
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run(config))
    except OperatorError as error:
        sys.exit(f"llmtrain-operator: {error}")


async def run(config: Config) -> None:
    """Wait for the lease, then lead until a signal ends it."""
    calm_collector()
    metrics = Metrics()
    configuration = await load_configuration(config.kubeconfig)
    # The lease has a client of its own: the fence of the other one asks the lease.
    lease_client = KubeClient(configuration, metrics.requests)
    elector = LeaderElector(
        lease_client, config.lease_namespace, config.lease, config.identity, config.timing
    )
    cluster = KubeClient(configuration, metrics.requests, fence=elector.fence)
    runtime = Runtime(config, cluster, metrics, _on_task_ended)
    leading = False

    def healthy() -> bool:
        return not leading or (elector.valid and runtime.alive)

    def ready() -> bool:
        return runtime.ready if leading else True

    try:
        async with serve(config, metrics.registry, healthy, ready):
            await elector.acquire()
            leading = True
            metrics.leader.set(1)
            renewing = asyncio.create_task(
                elector.renew_until_lost(_on_lease_lost), name="lease keeper"
            )
            guard(renewing, _on_task_ended)
            try:
                await operate(runtime)
            finally:
                renewing.cancel()
                await elector.release()
    finally:
        await cluster.close()
        await lease_client.close()


def _on_lease_lost() -> None:
    """End without any more await: another process may be writing already."""
    log.error("the lease is lost: ending")
    logging.shutdown()
    os._exit(EXIT_LEASE_LOST)


def _on_task_ended(part: str) -> None:
    """End: without one of its parts a leader leads nobody, and only a new process has them all."""
    log.error("the %s has ended: ending with it", part)
    logging.shutdown()
    os._exit(EXIT_TASK_ENDED)


if __name__ == "__main__":
    main()
