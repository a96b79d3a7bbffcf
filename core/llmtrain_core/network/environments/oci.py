"""Oracle (OKE): RoCE on bare-metal shapes.

Both ways that Oracle documents mount the host path `/dev/infiniband` in a privileged container. A
job whose cluster does that for it names the devices in `network.rdma`, and gets the variables.
"""

from __future__ import annotations

from collections.abc import Iterator

from llmtrain_core.network.facts import INSTANCE_TYPE, NodeFacts
from llmtrain_core.network.rows import (
    CandidateNetwork,
    Devices,
    Need,
    NeedKind,
    Value,
)

RESOURCE = "nvidia.com/rdma-vf"
PREFIX, SHAPES = "oci.oraclecloud.com/", "BM.GPU."
_AMD_NICS = "MI355X"
"""Part of the names of shapes whose NICs are AMD's, with other settings."""
_VF = (
    "oracle-quickstart/oci-hpc-oke: manifests/nccl-tests/virtual-functions/kueue/BM.GPU.H100.8.yaml"
)


def roce(facts: NodeFacts) -> Iterator[CandidateNetwork]:
    """Yield RoCE on a node with virtual functions, or of a bare-metal GPU shape.

    The index of the GID, the lossless traffic class and the timeout are those of Oracle's fabric.
    """
    shape = facts.labels.get(INSTANCE_TYPE, "")
    has_functions = facts.amount(RESOURCE) > 0
    if not has_functions and not (shape.startswith(SHAPES) and facts.has_label(PREFIX)):
        return
    yield CandidateNetwork(
        row="oci-roce",
        fact=(
            facts.allocatable_fact(RESOURCE) if has_functions else facts.label_fact(INSTANCE_TYPE)
        ),
        profiles=("roce",),
        devices=Devices(RESOURCE, _VF) if has_functions else None,
        variables=(
            Value("NCCL_SOCKET_IFNAME", "eth0", _VF),
            Value("NCCL_IB_HCA", "mlx5", _VF),
            Value("NCCL_IB_GID_INDEX", "3", _VF),
            Value("NCCL_IB_TC", "41", _VF),
            Value("NCCL_IB_SL", "0", _VF),
            Value("NCCL_IB_TIMEOUT", "22", _VF),
        )
        if has_functions and _AMD_NICS not in shape
        else (),
        need=Need(
            NeedKind.PRIVILEGE, "a privileged container with the host path /dev/infiniband", _VF
        ),
        topology="oci-rdma",
    )
