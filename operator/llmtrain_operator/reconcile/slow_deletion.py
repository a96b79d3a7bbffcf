"""What the deletion of a job waits for, reported once when it takes long.

The status of a job that is gone cannot say it. So the log and Events of its pods do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from llmtrain_operator.cache.job import parse_time
from llmtrain_operator.cache.records import PodRecord
from llmtrain_operator.job_state.observation import Observed
from llmtrain_operator.job_state.pods import NAMED_PODS, names_of
from llmtrain_operator.policies.deletion import seconds_until_slow
from llmtrain_operator.reconcile.backoff import RESYNC_SECONDS
from llmtrain_operator.reconcile.writer import JobWriter

log = logging.getLogger(__name__)


@dataclass(slots=True)
class SlowDeletion:
    """Follows the deletion of one job."""

    uid: str
    writer: JobWriter
    gone_since: float | None = None
    """When the job was found to be gone, if it left pods; monotonic time."""
    logged: bool = False

    async def follow_last_pods(self, pods: Sequence[PodRecord]) -> float | None:
        """Follow pods of a job that is gone, and name them if they do not end.

        Return the seconds until the next time, or None at the end. The pods hold their nodes.
        """
        pods = [pod for pod in pods if not pod.ended]
        if not pods:
            return None
        now = time.monotonic()
        if self.gone_since is None:
            self.gone_since = now
            log.info("job=%s is gone, %d pods have not ended yet", self.uid, len(pods))
        left = seconds_until_slow(pods, now - self.gone_since, datetime.now(UTC))
        if left > 0:
            return left
        text = "job=%s is gone, but its pods have not ended and hold their nodes: %s"
        log.warning(text, self.uid, names_of(pods))
        await self.writer.report_left_pods(self.uid, pods[:NAMED_PODS])
        return None

    def follow(self, observed: Observed) -> float:
        """Log once what a job waits for that exists long after its deletion.

        Return the seconds until the next time.
        """
        passed = (observed.now - parse_time(observed.view.deletion_time)).total_seconds()
        left = seconds_until_slow(observed.pods, passed, observed.now)
        if left > 0:
            return left
        if not self.logged:
            self.logged = True
            waits_for = f"its pods {names_of(observed.pods)}" if observed.pods else "its finalizers"
            text = "job=%s was deleted %.0f s ago and waits for %s"
            log.warning(text, self.uid, passed, waits_for)
        return RESYNC_SECONDS
