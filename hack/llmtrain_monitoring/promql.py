"""Parts of PromQL expressions, and the metric names that an expression uses."""

from __future__ import annotations

import re

WINDOW = "5m"
"""Window of recorded rates. It has many steps, and several of the sampled ones."""

JOB = "namespace, llmtrain_job"
"""Labels of a job on the series of its pods."""
POD_LABELS = "pod, node, instance, container, endpoint, job, attempt"
"""Labels of the scrape target that tell the pods of a job apart, topology labels excluded."""
NODE_LEVELS = "level_node, level_nvlink"
"""Topology labels below the leaf switch: the node itself, and its NVLink domain."""

JOB_SELECTOR = 'namespace=~"$namespace",llmtrain_job=~"$llmtrain_job"'
"""Selects the series of pods by the variables of a dashboard."""
OPERATOR_SELECTOR = 'namespace=~"$namespace",job=~"$llmtrain_job"'
"""Selects the operator's series of jobs: there, `job` is the job and not the scrape job."""

RANK_SPEED = (
    f"max by ({JOB}, node, gpu, rank, tp, pp, dp, cp, rep) ("
    f"llmtrain_straggler_score{{{JOB_SELECTOR}}} "
    "* on (namespace, pod, gpu) group_left (rank, tp, pp, dp, cp, rep) "
    f"llmtrain_rank_info{{{JOB_SELECTOR}}})"
)
"""The speed of each rank, with its coordinates and where it runs."""

TENSORS = 'payload="tensor"'
"""Selects the waits that are a part of `llmtrain_collective_seconds`, which leaves out scalars."""

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"')
_MATCHERS = re.compile(r"\{[^{}]*\}")
_RANGES = re.compile(r"\[[^\]]*\]")
_LABELS = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^()]*\)")
_NAME = re.compile(r"(?<![\w:.$])[a-zA-Z_:][\w:]*(?![\w:]*\s*\()")
_OPERATORS = frozenset(["and", "or", "unless", "bool"])


def metric_names(expression: str) -> frozenset[str]:
    """Return the names of the metrics that an expression selects."""
    bare = _STRINGS.sub("", expression)
    for part in (_MATCHERS, _RANGES, _LABELS):
        bare = part.sub(" ", bare)
    bare = re.sub(r"\boffset\s+-?\w+|(?<![\w:])\d[\w.]*", " ", bare)
    return frozenset(_NAME.findall(bare)) - _OPERATORS


def rate_sum(metric: str, by: str, window: str = WINDOW, selector: str = "") -> str:
    """Return the rate of a counter, summed by labels."""
    return f"sum by ({by}) (rate({_selected(metric, selector)}[{window}]))"


def mean(metric: str, by: str, window: str = WINDOW, selector: str = "") -> str:
    """Return the mean of the observations of a histogram or a summary."""
    total = rate_sum(f"{metric}_sum", by, window, selector)
    return f"{total} / {rate_sum(f'{metric}_count', by, window, selector)}"


def quantile(share: float, metric: str, window: str, by: str = "", selector: str = "") -> str:
    """Return a quantile of a histogram, by labels."""
    labels = f"le, {by}" if by else "le"
    buckets = rate_sum(f"{metric}_bucket", labels, window, selector)
    return f"histogram_quantile({share}, {buckets})"


def transfer_sum(grouping: str) -> str:
    """Return the rate of seconds in collectives without the wait for the last rank.

    A group whose waits are not measured, such as the pipeline's, counts with its whole time.
    """
    whole = f"sum {grouping} (rate(llmtrain_collective_seconds_sum[{WINDOW}]))"
    waits = f"sum {grouping} (rate(llmtrain_collective_wait_seconds_sum{{{TENSORS}}}[{WINDOW}]))"
    return f"({whole} - ({waits} or 0 * {whole}))"


def as_job_of_pods(metric: str, *labels: str) -> str:
    """Return a metric of the operator with the job's name in the label of the pods' series."""
    renamed = f'label_replace({metric}, "llmtrain_job", "$1", "job", "(.+)")'
    return f"max by ({', '.join((JOB, *labels))}) ({renamed})"


def _selected(metric: str, selector: str) -> str:
    return f"{metric}{{{selector}}}" if selector else metric
