"""The kopf handlers: they watch jobs, manage the finalizer and run one reconciler per job.

A kopf daemon per job is the serial reconcile loop of that job; the informer of jobs triggers it.
`on.create/update/resume` handlers are not used, because they are edge-triggered and store a second
copy of the spec. Indexes are not used, because they are slow and miss deletions between two
watches.
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
from llmtrain_operator.cache.job import is_ours
from llmtrain_operator.controller import Controller
from llmtrain_operator.errors import ConfigError
from llmtrain_operator.kopf_workarounds import NoDiffBase, NoProgress, fed_by

PLURAL = "llmtrainingjobs"
TOKEN_MINUTES = 5
"""Lifetime of kopf's credentials. The kubelet rotates a mounted token long before it expires."""


async def operate(controller: Controller) -> None:
    """Run the operator until a signal or a fatal error."""
    namespace = controller.config.namespace
    with fed_by(controller.feed):
        await kopf.operator(
            registry=registry(),
            memo=kopf.Memo(controller=controller),
            # By default kopf looks up the user name, which the UID of a container may not have.
            identity=controller.config.identity,  # type: ignore[arg-type]  # a NewType of kopf
            standalone=True,
            clusterwide=namespace is None,
            namespaces=[namespace] if namespace else [],
        )


def registry() -> kopf.OperatorRegistry:
    """Return a registry with all handlers."""
    handlers = kopf.OperatorRegistry()
    on: dict[str, Any] = {"registry": handlers}
    kopf.on.startup(**on)(configure)
    kopf.on.startup(**on)(start)
    kopf.on.cleanup(**on)(stop)
    kopf.on.login(**on)(login)
    kopf.daemon(GROUP, VERSION, PLURAL, when=is_managed, **on)(reconcile)
    return handlers


def is_managed(spec: Mapping[str, Any], **_: Any) -> bool:
    """Return False for jobs of other controllers, so that they do not even get the finalizer."""
    return is_ours(spec)


async def configure(settings: kopf.OperatorSettings, memo: kopf.Memo, **_: Any) -> None:
    """Set every kopf setting whose default does not fit."""
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.peering.standalone = True
    settings.persistence.finalizer = labels.FINALIZER
    settings.persistence.progress_storage = NoProgress(memo.controller.repeat)
    settings.persistence.diffbase_storage = NoDiffBase()
    settings.queueing.worker_limit = None
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.execution.max_workers = 4
    # Interval at which kopf checks a deleted job until its daemon ends.
    settings.background.cancellation_polling = 0.5
    settings.background.instant_exit_timeout = 0.5
    settings.process.ultimate_exiting_timeout = 20
    # kopf logs one line per event; the log of the operator has the same information.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)


async def start(memo: kopf.Memo, **_: Any) -> None:
    """Fill the informer caches before the first reconcile."""
    await memo.controller.start()


async def stop(memo: kopf.Memo, **_: Any) -> None:
    """Stop all tasks."""
    await memo.controller.stop()


async def login(memo: kopf.Memo, **_: Any) -> kopf.ConnectionInfo:
    """Return the operator's own credentials for kopf."""
    credentials = await memo.controller.cluster.credentials()
    if not credentials.server:
        raise ConfigError("the kubeconfig has no server")
    lifetime = timedelta(minutes=TOKEN_MINUTES)
    return kopf.ConnectionInfo(
        server=credentials.server,
        ca_path=credentials.ca_path,
        insecure=credentials.insecure,
        token=credentials.token,
        certificate_path=credentials.certificate_path,
        private_key_path=credentials.private_key_path,
        expiration=datetime.now(UTC) + lifetime if credentials.rotates else None,
    )


async def reconcile(
    memo: kopf.Memo, uid: str, meta: Mapping[str, Any], stopped: kopf.DaemonStopped, **_: Any
) -> None:
    """Run the reconciler of one job until the job is gone or this process exits.

    A job that is being deleted keeps its reconciler, which returns when the pods are gone. Then
    kopf removes the finalizer.
    """
    with memo.controller.reconciler(uid) as loop:
        stopper = asyncio.create_task(_stop_on_exit(stopped, loop))
        try:
            await loop.run(int(meta["resourceVersion"]))
        finally:
            stopper.cancel()


async def _stop_on_exit(stopped: kopf.DaemonStopped, loop: Any) -> None:
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
