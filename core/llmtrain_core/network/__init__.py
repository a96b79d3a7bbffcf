"""The network of a job: what its nodes offer, and what its transfers show.

docs/networks.md has the table of the networks.
"""

from llmtrain_core.network.facts import FactsCache, NodeFacts
from llmtrain_core.network.gang import GangNetwork, gang_networks
from llmtrain_core.network.profile import (
    Kind,
    NodeNetwork,
    NoNetwork,
    Setting,
    network_of,
)
from llmtrain_core.network.request import NetworkRequest

__all__ = [
    "FactsCache",
    "GangNetwork",
    "Kind",
    "NetworkRequest",
    "NoNetwork",
    "NodeFacts",
    "NodeNetwork",
    "Setting",
    "gang_networks",
    "network_of",
]
