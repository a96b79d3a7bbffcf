"""Which variables `network.tuning` tries, which NCCL reads only at its start, and the fastest.

The candidates follow from the row of the table of networks. They are independent of each other, and
tried one after the other, each together with the fastest of those before it. `NCCL_ALGO`,
`NCCL_PROTO` and `NCCL_BUFFSIZE` are never candidates: NCCL chooses an algorithm and a protocol for
each call, and a forced protocol can corrupt data where it is not supported.

Source of all names and values: NVIDIA, NCCL User Guide: Environment Variables.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from math import inf

from llmtrain_core.api.defaults import LEAST_GAIN, MAX_NETWORK_TRIALS
from llmtrain_core.api.status.network_tuning import NetworkTrial

Variables = Mapping[str, str]
"""Variables of one candidate, or of one trial."""

NVIDIA = "nvidia.com/"
"""Prefix of the resources of GPUs whose jobs have candidates of their own: NVIDIA's guide describes
NCCL, not RCCL."""
VERBS_ROWS = frozenset(
    {
        "azure-infiniband",
        "coreweave-infiniband",
        "coreweave-roce",
        "nvidia-network-operator",
        "oci-roce",
    }
)
"""Rows whose network is NCCL's own InfiniBand transport (`NCCL_IB_...`), also for RoCE."""
RDMA_ROWS = VERBS_ROWS | {"aws-efa", "dra", "network.rdma"}
"""Rows with a NIC near each GPU, to which PXN sends through another GPU."""
SOCKET_ROWS = frozenset({"tcp"})
FIXED_ROWS = frozenset({"amd-ainic", "gke-gib", "gke-tcpx", "gke-tcpxo"})
"""Rows without candidates: the provider sets and checks the variables, or the library is RCCL."""

_NVLS: Variables = {"NCCL_NVLS_ENABLE": "0"}
_PXN: Variables = {"NCCL_PXN_DISABLE": "1"}
_QUEUE_PAIRS: tuple[Variables, ...] = (
    {"NCCL_IB_QPS_PER_CONNECTION": "4"},
    {"NCCL_IB_QPS_PER_CONNECTION": "4", "NCCL_IB_SPLIT_DATA_ON_QPS": "1"},
)
"""More paths of a multi-level fabric for each connection, by message or inside a message."""
_SOCKETS: Variables = {"NCCL_SOCKET_NTHREADS": "4", "NCCL_NSOCKS_PERTHREAD": "4"}
"""The values of the guide for networks of 100 Gbit/s."""
_CHANNELS: tuple[Variables, ...] = (
    {"NCCL_MAX_CTAS": "8"},
    {"NCCL_MIN_CTAS": "32"},
)
"""Fewer channels leave more of a GPU to the computation, more channels may have more throughput."""


def start_candidates(
    row: str, gpu_resource: str, nodes: int, gpus_per_node: int, given: Collection[str]
) -> tuple[Variables, ...]:
    """Return the candidates of a gang, without those that name a variable of `given`.

    `row` is a row of the table of networks, or empty if it is not known. `given` has the names of
    the variables that the pods have: those of the job, of the network and of the image.
    """
    if row in FIXED_ROWS or not gpu_resource.startswith(NVIDIA):
        return ()
    found = _candidates(row, nodes > 1, gpus_per_node > 1)
    return tuple(each for each in found if not each.keys() & {*given})


def next_trial(
    candidates: Sequence[Variables], trials: Sequence[NetworkTrial]
) -> tuple[dict[str, str], dict[str, str] | None]:
    """Return the fastest variables so far, and those to try next; None after the last.

    The first trial is that of no variables. A candidate is tried together with the fastest
    variables before it, and kept if it is faster by `LEAST_GAIN`. A trial that failed is not
    repeated. There are at most `MAX_NETWORK_TRIALS` trials.
    """
    seconds = {_key(each.variables): _seconds(each) for each in trials}
    best: dict[str, str] = {}
    if _key(best) not in seconds:
        return best, best
    for candidate in candidates[: MAX_NETWORK_TRIALS - 1]:
        tried = {**best, **candidate}
        if _key(tried) not in seconds:
            return best, tried
        if seconds[_key(tried)] < (1 - LEAST_GAIN) * seconds[_key(best)]:
            best = tried
    return best, None


def _candidates(row: str, has_network: bool, has_peers: bool) -> Iterator[Variables]:
    if has_peers:  # NVLink SHARP reduces in the switch of the node
        yield _NVLS
    if has_network and has_peers and row in RDMA_ROWS:
        yield _PXN
    if has_network and row in VERBS_ROWS:
        yield from _QUEUE_PAIRS
    if has_network and row in SOCKET_ROWS:
        yield _SOCKETS
    if has_network or has_peers:
        yield from _CHANNELS


def _key(variables: Variables) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(variables.items()))


def _seconds(trial: NetworkTrial) -> float:
    return inf if trial.step_seconds is None or trial.failure else trial.step_seconds
