"""The network of a job: what its nodes offer, and what its transfers show.

docs/networks.md has the table of the networks.
"""

from llmtrain_core.network.facts import FactsCache, NodeFacts
from llmtrain_core.network.gang import GangNetwork, gang_networks
from llmtrain_core.network.profile import NodeNetwork, NoNetwork, network_of
from llmtrain_core.network.request import NetworkRequest
from llmtrain_core.network.settings import Kind, Setting

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
