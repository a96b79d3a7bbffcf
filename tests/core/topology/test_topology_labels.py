"""What nodes' labels say of the network: presets, and labels that lack, contradict or change."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmtrain_core.api.fabric import FabricSpec
from llmtrain_core.topology.findings import LabelFinding, findings, sentences
from llmtrain_core.topology.inventory import Node, Snapshot, snapshot
from llmtrain_core.topology.label_presets import NVLINK_LABELS, PRESETS, detect, fit, levels_of
from llmtrain_core.topology.levels import NODE, FabricLevel, Levels

pytestmark = pytest.mark.unit

GPU = "nvidia.com/gpu"
CLIQUE = "nvidia.com/gpu.clique"
LEVELS = (FabricLevel("spine", "s"), FabricLevel("leaf", "l"), NODE)


def cluster(*labels: dict[str, str], levels: Levels = LEVELS) -> Snapshot:
    """Nodes n0, n1, ... with these labels."""
    nodes = [Node(f"n{index}", given, {GPU: 8}) for index, given in enumerate(labels)]
    return snapshot(levels, nodes, [])


def names(levels: Levels) -> list[str]:
    return [level.name for level in levels]


def keys(levels: Levels) -> list[str]:
    return [level.node_label for level in levels[:-1]]


EXPECTED = {
    "topograph": [f"fabric.topograph.run/tier-{n}" for n in (2, 1, 0)],
    "topograph-legacy": [f"network.topology.nvidia.com/{n}" for n in ("core", "spine", "leaf")],
    "gke": [f"cloud.google.com/gce-topology-{n}" for n in ("block", "subblock", "host")],
    "aws": [f"topology.k8s.aws/network-node-layer-{n}" for n in (1, 2, 3, 4)],
    "oci-rdma": [
        f"oci.oraclecloud.com/rdma.{n}"
        for n in ("hpc_island_id", "network_block_id", "local_block_id")
    ],
    "oci": [f"oci.oraclecloud.com/host.{n}" for n in ("network_block_id", "rack_id")],
    "coreweave": [f"backend.coreweave.cloud/{n}" for n in ("fabric", "superpod", "leafgroup")],
    "coreweave-legacy": [f"ib.coreweave.cloud/{n}" for n in ("fabric", "superpod", "leafgroup")],
    "azure": ["ib/torset"],
    "kueue": [f"cloud.provider.com/topology-{n}" for n in ("block", "rack")],
    "zone": [f"topology.kubernetes.io/{n}" for n in ("region", "zone")],
    "nvlink": [],
}
"""Keys from far to near as their owners document them."""


def test_every_preset_is_expected_here() -> None:
    assert EXPECTED.keys() == PRESETS.keys()


@pytest.mark.parametrize("preset", sorted(EXPECTED))
def test_a_preset_is_found_by_its_keys_and_orders_them_far_to_near(preset: str) -> None:
    labels = dict.fromkeys([*reversed(EXPECTED[preset]), CLIQUE], "x") | {NODE.node_label: "n"}
    found = detect([labels, labels])
    assert keys(found) == [*EXPECTED[preset], CLIQUE]
    assert found == fit(levels_of(FabricSpec(preset=preset)), [labels, labels])
    assert found[-1] == NODE and found[-2].nvlink
    assert len(set(names(found))) == len(found)


@pytest.mark.parametrize("preset", sorted(set(EXPECTED) - {"nvlink"}))
@pytest.mark.parametrize("nearest", [True, False])
def test_levels_that_no_node_is_labelled_for_are_left_out(preset: str, nearest: bool) -> None:
    key = EXPECTED[preset][-1 if nearest else 0]
    assert keys(detect([{key: "x"}, {}])) == [key]


def test_the_depth_of_topograph_varies() -> None:
    tiers = [f"fabric.topograph.run/tier-{n}" for n in range(6)]
    found = detect([dict.fromkeys(tiers, "x")])
    assert names(found) == ["tier-5", "tier-4", "tier-3", "core", "spine", "leaf", "node"]
    assert names(detect([{tiers[0]: "x"}])) == ["leaf", "node"]


def test_the_levels_of_any_preset_fit_into_a_status() -> None:
    assert all(len(levels) <= 16 for levels in PRESETS.values())


def test_new_topograph_keys_win_over_old_ones_and_over_zones() -> None:
    labels = {
        "topology.kubernetes.io/zone": "z",
        "network.topology.nvidia.com/leaf": "old",
        "fabric.topograph.run/tier-0": "new",
    }
    assert keys(detect([labels])) == ["fabric.topograph.run/tier-0"]


def test_without_labels_all_nodes_are_one_level() -> None:
    assert detect([{NODE.node_label: "n"}]) == (NODE,)
    assert detect([]) == (NODE,)


def test_a_preset_that_no_node_is_labelled_for_reports_every_node() -> None:
    state = cluster({}, {}, levels=fit(PRESETS["aws"], [{}, {}]))
    assert keys(state.levels) == [EXPECTED["aws"][-1]]
    assert [finding.nodes for finding in findings(state)] == [("n0", "n1")]


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"spec\.preset: no preset is named 'x'; use one of aws"):
        levels_of(FabricSpec(preset="x"))


# NVLink domains larger than a node.


@pytest.mark.parametrize("label", NVLINK_LABELS)
def test_an_nvlink_domain_of_two_nodes_is_a_level_between_leaf_and_node(label: str) -> None:
    leaf = EXPECTED["topograph-legacy"][-1]
    found = detect([{leaf: "l", label: "d"}, {leaf: "l", label: "d"}, {leaf: "m"}])
    assert names(found) == ["leaf", "nvlink", "node"]
    assert keys(found) == [leaf, label] and found[1].nvlink


def test_the_surest_nvlink_label_counts() -> None:
    both = dict.fromkeys(NVLINK_LABELS, "d")
    assert keys(detect([both, both])) == [CLIQUE]
    alone = [{**both, CLIQUE: "a.0"}, {**both, CLIQUE: "b.0"}]
    assert keys(detect(alone)) == [NVLINK_LABELS[1]], "a clique per node says nothing"


@pytest.mark.parametrize(
    "values",
    [
        ["a.1", "b.1"],
        ["00000000-0000-0000-0000-000000000000.0"] * 2,
        ["", ""],
    ],
)
def test_nvlink_that_ends_at_the_node_is_no_level(values: list[str]) -> None:
    assert detect([{CLIQUE: value} for value in values]) == (NODE,)


def test_nodes_without_an_nvlink_domain_are_domains_of_their_own_and_no_gap() -> None:
    labels = [{CLIQUE: "a.1"}, {CLIQUE: "a.1"}, {}, {}]
    state = cluster(*labels, levels=detect(labels))
    assert len({state.path(node)[0] for node in state.nodes}) == 3
    assert findings(state) == () and state.missing_labels() == {}


def test_a_fabric_names_its_nvlink_label() -> None:
    leaf = {"name": "leaf", "nodeLabel": "example.com/leaf"}
    node = {"name": "node", "nodeLabel": NODE.node_label}
    rack = {"name": "rack", "nodeLabel": "example.com/rack"}

    def levels(*given: Any, label: str = "example.com/rack") -> Levels:
        return levels_of(FabricSpec.from_wire({"levels": [*given], "nvlink": {"nodeLabel": label}}))

    assert [(lv.name, lv.nvlink) for lv in levels(leaf, node)] == [
        ("leaf", False),
        ("nvlink", True),
        ("node", False),
    ]
    assert [(lv.name, lv.nvlink) for lv in levels(leaf, rack, node)] == [
        ("leaf", False),
        ("rack", True),
        ("node", False),
    ]
    assert fit(levels(leaf, node), [{}]) == levels(leaf, node), "what is spelled out stays"
    with pytest.raises(ValueError, match=r"spec\.levels: the name 'nvlink' .* rename the level"):
        levels({"name": "nvlink", "nodeLabel": "example.com/other"}, node)
    preset = FabricSpec.from_wire({"preset": "kueue", "nvlink": {"nodeLabel": "example.com/rack"}})
    assert keys(levels_of(preset))[-1] == "example.com/rack"


def test_an_nvlink_domain_across_two_leaves_is_two_and_reported() -> None:
    leaf = EXPECTED["topograph-legacy"][-1]
    labels = [{leaf: "l1", CLIQUE: "a.1"}, {leaf: "l2", CLIQUE: "a.1"}]
    state = cluster(*labels, levels=detect(labels))
    assert len({state.path(node)[:2] for node in state.nodes}) == 2
    assert findings(state) == (
        LabelFinding("contradiction", "nvlink", CLIQUE, ("n0", "n1"), "a.1", ("l1", "l2")),
    )


# Labels that lack, contradict, or are strange.


def test_the_same_leaf_name_under_two_spines_is_two_leaves_and_reported() -> None:
    state = cluster({"s": "1", "l": "x"}, {"s": "2", "l": "x"}, {"s": "2", "l": "y"})
    assert [state.path(node)[:2] for node in state.nodes] == [("1", "x"), ("2", "x"), ("2", "y")]
    (found,) = findings(state)
    assert (found.kind, found.domain, found.parents) == ("contradiction", "x", ("1", "2"))
    assert found.nodes == ("n0", "n1")
    assert found.sentence() == "leaf x is under 2 domains (1, 2): treated as 2 separate domains"


def test_missing_and_empty_labels_are_reported_by_node_and_level() -> None:
    state = cluster({"s": "1", "l": "x"}, {"s": "1"}, {"s": "1", "l": ""}, {"l": "x"})
    assert len({state.path(node)[:2] for node in state.nodes}) == 4
    assert state.missing_labels() == {"s": ["n3"], "l": ["n1", "n2"]}
    gaps = findings(state)
    assert [(f.kind, f.level, f.nodes) for f in gaps] == [
        ("missing", "spine", ("n3",)),
        ("missing", "leaf", ("n1",)),
        ("empty", "leaf", ("n2",)),
    ]
    assert gaps[1].sentence() == ("1 node with no label l (n1): each is treated as a separate leaf")
    assert gaps[1].to_wire()["message"] == gaps[1].sentence()


def test_clean_labels_have_no_findings() -> None:
    state = cluster({"s": "1", "l": "x"}, {"s": "1", "l": "y"}, {"s": "2", "l": "z"})
    assert findings(state) == ()


def test_names_counted_anew_under_each_spine_are_one_sentence() -> None:
    labels = [{"s": f"s{s}", "l": f"rack-{r}"} for s in range(2) for r in range(9)]
    found = findings(cluster(*labels))
    assert len(found) == 9
    (said,) = sentences(found)
    assert said.startswith("9 names of level leaf have several parents (rack-0, rack-1,")


def test_a_host_may_be_called_like_a_rack() -> None:
    nodes = [
        Node("rack-1", {"s": "rack-1", "l": "rack-1"}, {}),
        Node("rack-2", {"s": "rack-1"}, {}),
    ]
    state = snapshot(LEVELS, nodes, [])
    assert state.path(state.nodes[0]) == ("rack-1", "rack-1", "rack-1")
    assert state.path(state.nodes[1])[1] not in {"rack-1", "rack-2"}
    assert [f.kind for f in findings(state)] == ["missing"]


def test_a_node_without_a_label_never_joins_a_domain_that_is_called_like_it() -> None:
    state = snapshot(LEVELS, [Node("a", {"s": "1"}, {}), Node("b", {"s": "1", "l": "a"}, {})], [])
    assert state.path(state.nodes[0])[:2] != state.path(state.nodes[1])[:2]


def test_no_label_of_a_file_names_the_domain_of_a_node_without_one() -> None:
    """No cluster has such labels, but a file may, and they may look like what we made of others."""
    odd = ["unlabelled:n0", "\\unlabelled:n0", "\\\\unlabelled:n0", "n0"]
    state = cluster({"s": "1"}, *({"s": "1", "l": value} for value in odd))
    assert len({state.path(node)[:2] for node in state.nodes}) == 1 + len(odd)


def test_empty_labels_do_not_choose_the_preset_where_others_are() -> None:
    leaf, zone = "fabric.topograph.run/tier-0", "topology.kubernetes.io/zone"
    assert names(detect([{leaf: "", zone: "a"}, {leaf: "", zone: "b"}])) == ["zone", "node"]
    assert names(detect([{leaf: "", zone: "a"}, {leaf: "x", zone: "b"}])) == ["leaf", "node"]
    assert names(detect([{leaf: ""}])) == ["leaf", "node"], "it is there to be reported"


label_values = st.one_of(
    st.sampled_from(["", "a", "b", "n0", "unlabelled:n0", "\\unlabelled:n0"]),
    st.text("ab1n0 /:.-é機²٣\x00", max_size=70),
)


@given(
    st.lists(st.fixed_dictionaries({}, optional={"s": label_values, "l": label_values}), max_size=8)
)
def test_any_labels_make_a_tree(labels: list[dict[str, str]]) -> None:
    state = cluster(*labels)
    paths = {node.name: state.path(node) for node in state.nodes}
    assert len(set(paths.values())) == len(labels)
    said = [node for f in findings(state) if f.kind != "contradiction" for node in f.nodes]
    lacking = [
        name
        for name, given in zip(paths, labels, strict=True)
        for key in "sl"
        if not given.get(key)
    ]
    assert sorted(said) == sorted(lacking)
    for one, path in paths.items():
        for other, same in paths.items():
            a, b = labels[int(one[1:])], labels[int(other[1:])]
            together = bool(a.get("s") and a.get("l")) and all(a[k] == b.get(k) for k in "sl")
            assert one == other or (path[:2] == same[:2]) == together


def test_a_leaf_of_300_nodes_and_300_leaves() -> None:
    wide = [{"s": "1", "l": "x"}] * 300
    flat = [{"s": "2", "l": f"leaf-{index}"} for index in range(300)]
    state = cluster(*wide, *flat)
    leaves: dict[tuple[str, ...], int] = {}
    for node in state.nodes:
        leaf = state.path(node)[:2]
        leaves[leaf] = leaves.get(leaf, 0) + 1
    assert len(leaves) == 301 and leaves["1", "x"] == 300
    assert findings(state) == ()
