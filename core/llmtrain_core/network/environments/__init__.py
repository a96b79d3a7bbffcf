"""The table of networks, one module an environment. The first row that matches is the network."""

from llmtrain_core.network.environments import (
    amd_ainic,
    aws_efa,
    azure,
    coreweave,
    dra_drivers,
    gke,
    gke_gpudirect,
    nvidia_network_operator,
    oci,
)
from llmtrain_core.network.rows import Row

TABLE: tuple[Row, ...] = (
    aws_efa.efa,
    gke.gib,
    gke_gpudirect.tcpxo,
    gke_gpudirect.tcpx,
    coreweave.roce,
    coreweave.infiniband,
    oci.roce,
    azure.infiniband,
    amd_ainic.roce,
    nvidia_network_operator.shared,
    nvidia_network_operator.exclusive,
    dra_drivers.claims,
)
"""The rows, those with the most specific facts first. A node that none of them matches has TCP."""

__all__ = ["TABLE"]
