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
from llmtrain_operator.health import serving
from llmtrain_operator.kube.client import KubeClient, load_configuration
from llmtrain_operator.kube.leader_election import LeaderElector
from llmtrain_operator.metrics import Metrics

EXIT_LOST = 3
EXIT_BROKEN = 4
SWITCH_SECONDS = 0.0005
"""The queue is decided in a thread. With Python's usual 5 ms, each word to the API server would
wait so long for its turn while that thread computes."""
log = logging.getLogger("llmtrain_operator")


def main() -> None:
    """Run as a program."""
    try:
        config = parse(sys.argv[1:])
        sys.setswitchinterval(SWITCH_SECONDS)
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
    own = KubeClient(configuration, metrics.requests)
    lease = LeaderElector(own, config.lease_namespace, config.lease, config.identity, config.timing)
    cluster = KubeClient(configuration, metrics.requests, fence=lease.fence)
    runtime = Runtime(config, cluster, metrics, _broken)
    leading = False

    def healthy() -> bool:
        return not leading or (lease.valid and runtime.alive)

    def ready() -> bool:
        return runtime.ready if leading else True

    try:
        async with serving(config, metrics.registry, healthy, ready):
            await lease.acquire()
            leading = True
            metrics.leader.set(1)
            keeping = asyncio.create_task(lease.keep(_lost), name="lease keeper")
            guard(keeping, _broken)
            try:
                await operate(runtime)
            finally:
                keeping.cancel()
                await lease.release()
    finally:
        await cluster.close()
        await own.close()


def _lost() -> None:
    """End without any more await: another process may be writing already."""
    log.error("the lease is lost: ending")
    logging.shutdown()
    os._exit(EXIT_LOST)


def _broken(part: str) -> None:
    """End: without one of its parts a leader leads nobody, and only a new process has them all."""
    log.error("the %s has ended: ending with it", part)
    logging.shutdown()
    os._exit(EXIT_BROKEN)


if __name__ == "__main__":
    main()
