"""Recorded expressions, among them those that join placement and collectives."""

from __future__ import annotations

from llmtrain_monitoring.promql import (
    JOB,
    NODE_LEVELS,
    POD_LABELS,
    TENSORS,
    WINDOW,
    as_job_of_pods,
    rate_sum,
    transfer_sum,
)
from llmtrain_monitoring.rules.model import Recording, RuleGroup

_GROUP = f"{JOB}, group"
_BY_GROUP = f"by ({_GROUP})"
_BY_LEAF = f"without ({POD_LABELS}, {NODE_LEVELS}, op, payload)"
"""By all topology labels above the node, whatever the levels of the Fabric are named."""
_PLANNED = as_job_of_pods("llmtrain_operator_planned_collective_seconds", "group")
_SAMPLED = "rate(llmtrain_sampled_steps_total[5m])"

_DATA = 'phase="data"'

_ALL_DIMENSIONS = ("tp", "cp", "dp", "rep", "pp")
_SPANNED = {
    "tp": ("tp",),
    "cp": ("cp",),
    # The group `dp` is the FSDP group: data and context ranks.
    "dp": ("cp", "dp"),
    "edp": ("cp", "dp"),
    "rep": ("rep",),
    "rep-far": ("rep",),
    "pp": ("pp",),
}
"""The dimensions over which the ranks of a group of each kind differ."""


def _group_leaves(group: str, spanned: tuple[str, ...]) -> Recording:
    """Record the largest number of leaf domains that one group of a kind spans."""
    fixed = [name for name in _ALL_DIMENSIONS if name not in spanned]
    if group == "edp":
        fixed.append("ep")
    dropped = ", ".join((POD_LABELS, NODE_LEVELS, "gpu", "rank", *spanned, *_unused_ep(group)))
    leaves = f"count without ({dropped}) (llmtrain_rank_info)"
    per_group = f"count by ({JOB}, {', '.join(fixed)}) ({leaves})"
    return Recording(
        "llmtrain_job:group_leaves:max", f"max by ({JOB}) ({per_group})", {"group": group}
    )


def _unused_ep(group: str) -> tuple[str, ...]:
    return () if group == "edp" else ("ep",)


JOBS = RuleGroup(
    "llmtrain.job",
    (
        Recording(
            "llmtrain_job:step_seconds:mean5m",
            f"{rate_sum('llmtrain_step_seconds_sum', JOB)} / "
            f"({rate_sum('llmtrain_step_seconds_count', JOB)} > 0)",
        ),
        Recording("llmtrain_job:step:max", f"max by ({JOB}) (llmtrain_step)"),
        Recording(
            "llmtrain_job:checkpoint_last_step:max",
            f"max by ({JOB}) (llmtrain_checkpoint_last_step)",
        ),
        Recording(
            "llmtrain_job:mfu:max",
            f'max by ({JOB}) (llmtrain_mfu_ratio{{convention="causal-attention"}})',
        ),
        Recording("llmtrain_job:loss:max", f"max by ({JOB}) (llmtrain_loss)"),
        Recording(
            "llmtrain_job:data:ratio5m",
            f"{rate_sum('llmtrain_step_phase_seconds_sum', JOB, selector=_DATA)} / "
            f"({rate_sum('llmtrain_step_seconds_sum', JOB)} > 0)",
        ),
        Recording(
            "llmtrain_job:step_plan:ratio5m",
            "llmtrain_job:step_seconds:mean5m / "
            f"on ({JOB}) {as_job_of_pods('llmtrain_operator_planned_step_seconds')}",
        ),
    ),
)

NETWORK = RuleGroup(
    "llmtrain.network",
    (
        Recording(
            "llmtrain_job:collective_transfer_seconds:mean5m",
            f"{transfer_sum(_BY_GROUP)} / "
            f"({rate_sum('llmtrain_collective_seconds_count', _GROUP)} > 0)",
        ),
        Recording(
            "llmtrain_leaf:collective_transfer_seconds:mean5m",
            f"{transfer_sum(_BY_LEAF)} / "
            f"(sum {_BY_LEAF} (rate(llmtrain_collective_seconds_count[{WINDOW}])) > 0)",
        ),
        Recording(
            "llmtrain_job:collective_wait:ratio5m",
            f"{rate_sum('llmtrain_collective_wait_seconds_sum', _GROUP, selector=TENSORS)} / "
            f"({rate_sum('llmtrain_collective_seconds_sum', _GROUP)} > 0)",
        ),
        Recording(
            "llmtrain_job:collective_seconds_per_step:mean5m",
            f"{transfer_sum(_BY_GROUP)} / on ({JOB}) group_left () "
            f"(sum by ({JOB}) ({_SAMPLED}) > 0)",
        ),
        Recording(
            "llmtrain_job:collective_plan:ratio5m",
            f"llmtrain_job:collective_seconds_per_step:mean5m / on ({_GROUP}) ({_PLANNED} > 0)",
        ),
        Recording(
            "llmtrain_leaf:collective_plan:ratio5m",
            f"{transfer_sum(_BY_LEAF)} / ignoring (group) group_left () "
            f"(sum {_BY_LEAF} ({_SAMPLED}) > 0) / on ({_GROUP}) group_left () ({_PLANNED} > 0)",
        ),
        *(_group_leaves(group, spanned) for group, spanned in _SPANNED.items()),
    ),
)

_GPU_SECONDS = "llmtrain_operator_gpu_seconds_total"
_HELD = 'state!~"waiting|suspended"'
_FREE = 'sum by (level) (max by (level, domain) (llmtrain_operator_gpus{state="free",level!=""}))'

FLEET = RuleGroup(
    "llmtrain.fleet",
    (
        Recording(
            "llmtrain:gpus:sum",
            'max by (state) (llmtrain_operator_gpus{level=""})',
        ),
        Recording(
            "llmtrain:gpus_used:ratio",
            'sum(llmtrain:gpus:sum{state="used"}) / (sum(llmtrain:gpus:sum) > 0)',
        ),
        Recording(
            "llmtrain:goodput:ratio1h",
            f'sum(increase({_GPU_SECONDS}{{state="training"}}[1h])) / '
            f"(sum(increase({_GPU_SECONDS}{{{_HELD}}}[1h])) > 0)",
        ),
        Recording(
            "llmtrain_level:fragmentation:ratio",
            "1 - max by (level) (llmtrain_operator_largest_free_block_gpus) / "
            f"on (level) ({_FREE} > 0)",
        ),
    ),
)

OPERATOR = RuleGroup(
    "llmtrain.operator",
    (
        Recording(
            "llmtrain_operator:api_errors:ratio5m",
            '(sum(rate(llmtrain_operator_api_requests_total{code=~"0|429|5.."}[5m])) or vector(0))'
            " / (sum(rate(llmtrain_operator_api_requests_total[5m])) > 0)",
        ),
    ),
)
