"""Who gets a place, who waits and why, and who has to leave: decisions only."""

from llmtrain_core.queueing.cycle import decide
from llmtrain_core.queueing.types import Decision, Running, Scene, Start, Wait, Waiting

__all__ = ["Decision", "Running", "Scene", "Start", "Wait", "Waiting", "decide"]
