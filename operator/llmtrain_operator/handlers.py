"""The only place that knows kopf: it takes in jobs, keeps their finalizer, and runs their loops.

A daemon per job is the serial loop of that job. `on.event` only wakes it. There are no
`on.create/update/resume` handlers (they react to edges, and store a second copy of the spec) and no
indexes (slow, and blind to what vanished while nobody watched).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf

from llmtrain_core.api import labels
from llmtrain_core.api.base import GROUP, VERSION
from llmtrain_operator.controller import Runtime, is_ours
from llmtrain_operator.errors import ConfigError

PLURAL = "llmtrainingjobs"
TOKEN_MINUTES = 5
"""A mounted token is replaced while it is still valid: reading it so often is enough."""


async def operate(runtime: Runtime) -> None:
    """Run until a signal comes or something breaks that must not break."""
    namespace = runtime.config.namespace
    await kopf.operator(
        registry=registry(),
        memo=kopf.Memo(runtime=runtime),
        standalone=True,
        clusterwide=namespace is None,
        namespaces=[namespace] if namespace else [],
    )


def registry() -> kopf.OperatorRegistry:
    """Return the handlers, in a registry of their own."""
    handlers = kopf.OperatorRegistry()
    on: dict[str, Any] = {"registry": handlers}
    kopf.on.startup(**on)(configure)
    kopf.on.startup(**on)(start)
    kopf.on.cleanup(**on)(stop)
    kopf.on.login(**on)(login)
    kopf.on.event(GROUP, VERSION, PLURAL, when=in_charge, **on)(wake)
    kopf.daemon(GROUP, VERSION, PLURAL, when=in_charge, **on)(reconcile)
    return handlers


def in_charge(spec: Mapping[str, Any], **_: Any) -> bool:
    """Leave jobs of other controllers alone: not even the finalizer is theirs to carry."""
    return is_ours(spec)


async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    """Pin every setting whose default does not fit."""
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.peering.standalone = True
    settings.persistence.finalizer = labels.FINALIZER
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    settings.queueing.worker_limit = None
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.watching.chunk_size = 500
    settings.execution.max_workers = 4
    # A deleted job is looked at again so often until its pods are gone; each look is a write.
    settings.background.cancellation_polling = 2.0
    settings.background.instant_exit_timeout = 0.5
    settings.process.ultimate_exiting_timeout = 20
    # One line a turn and job says nothing that the operator's own log does not say better.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)


async def start(memo: kopf.Memo, **_: Any) -> None:
    """Fill the copies before the first job is looked at."""
    await memo.runtime.start()


async def stop(memo: kopf.Memo, **_: Any) -> None:
    """End what `start` began."""
    await memo.runtime.stop()


async def login(memo: kopf.Memo, **_: Any) -> kopf.ConnectionInfo:
    """Let kopf reach the API server the way the rest of the operator does."""
    found = await memo.runtime.cluster.credentials()
    if not found.server:
        raise ConfigError("the kubeconfig names no server")
    lifetime = timedelta(minutes=TOKEN_MINUTES)
    return kopf.ConnectionInfo(
        server=found.server,
        ca_path=found.ca_path,
        insecure=found.insecure,
        token=found.token,
        certificate_path=found.certificate_path,
        private_key_path=found.private_key_path,
        expiration=datetime.now(UTC) + lifetime if found.rotates else None,
    )


async def wake(memo: kopf.Memo, uid: str, **_: Any) -> None:
    """Let the loop of the job take a turn."""
    memo.runtime.wake(uid)


async def reconcile(
    memo: kopf.Memo, uid: str, meta: Mapping[str, Any], stopped: kopf.DaemonStopped, **_: Any
) -> None:
    """Run the loop of one job, from the day it is seen until it is gone or this process ends.

    A job that is being deleted keeps its loop: it ends by itself once the pods are gone, and only
    then does kopf take the finalizer away.
    """
    with memo.runtime.loop(uid) as loop:
        ending = asyncio.create_task(_end_with_the_process(stopped, loop))
        try:
            await loop.run(int(meta["resourceVersion"]))
        finally:
            ending.cancel()


async def _end_with_the_process(stopped: kopf.DaemonStopped, loop: Any) -> None:
    await stopped.wait()
    loop.wake.set()
    deleted = kopf.DaemonStoppingReason.RESOURCE_DELETED
    while stopped.reason is not None and deleted in stopped.reason and not _exiting(stopped):
        await asyncio.sleep(0.2)
    loop.stopping = True
    loop.wake.set()


def _exiting(stopped: kopf.DaemonStopped) -> bool:
    why = kopf.DaemonStoppingReason
    reason = stopped.reason
    return reason is not None and bool(reason & (why.OPERATOR_EXITING | why.OPERATOR_PAUSING))
