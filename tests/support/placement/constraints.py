"""What every placement must keep, whatever it costs."""

from __future__ import annotations

from llmtrain_core.placement import Placement, Request
from llmtrain_core.topology.inventory import Snapshot
from tests.support.placement.cases import GPU
from tests.support.placement.feasibility import tensor_blocks, tensor_depth


def keeps_constraints(request: Request, state: Snapshot, answer: Placement) -> None:
    """Assert that only free nodes are taken, each once, and that no hard demand is broken."""
    by_name = {node.name: node for node in state.nodes}
    chosen = [node.name for node in (*answer.nodes, *answer.spares)]
    assert len(set(chosen)) == len(chosen), "a node is named twice"
    assert len(answer.nodes) == request.nodes
    assert len(answer.spares) == request.spares
    for name in chosen:
        assert state.free(by_name[name], GPU) >= request.gpus_per_node
        assert all(state.free(by_name[name], key) >= n for key, n in request.extra.items())
        assert by_name[name].ready
        assert not by_name[name].cordoned
        assert name not in request.excluded
    paths = [state.path(by_name[node.name]) for node in answer.nodes]
    assert answer.cost.ideal_seconds <= answer.cost.seconds
    levels = [level.name for level in state.levels]
    for node, path in zip(answer.nodes, paths, strict=True):
        assert tuple(node.path[level] for level in levels) == path
    if request.require is not None:
        assert answer.domains[request.require] == 1
    depth = tensor_depth(request, state)
    for blocks in tensor_blocks(request):
        assert len({paths[block][:depth] for block in blocks}) == 1
