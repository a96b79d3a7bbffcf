"""The least set of slow links that explains the slow groups."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations
from math import log

import numpy as np
import pytest

from llmtrain_core.network.links import LinkPath, crossed_links
from llmtrain_core.network.localise import Localisation, Observation, localise
from llmtrain_core.network.transfer_times import JobTimes
from tests.support.slow_links.cases import random_cases
from tests.support.slow_links.fabric import random_fabric, random_jobs
from tests.support.slow_links.samples import names, random_noise, record_blocks

pytestmark = pytest.mark.unit

NODES = [(f"r{rack}", f"n{rack}{node}") for rack in range(4) for node in range(2)]


def pairs(
    nodes: Iterable[LinkPath],
    slow: Mapping[LinkPath, float],
    job: str = "ns/one",
    control: float = 1.0,
) -> list[Observation]:
    """Return a group of each pair of nodes and one inside a node, with some links slower."""
    found = [Observation(f"{job} tp", job, "tp", frozenset(), log(control), 0.02)]
    for first, second in combinations(nodes, 2):
        links = crossed_links([first, second], 2)
        factor = max([1.0, *(slow[link] for link in links if link in slow)])
        name = f"{job} {first[-1]}-{second[-1]}"
        found.append(Observation(name, job, "dp", links, log(factor * control), 0.02))
    return found


def named(found: Localisation) -> list[tuple[LinkPath, ...]]:
    return [each.links for each in found.slow_links]


def test_healthy_groups_name_no_link() -> None:
    assert localise(pairs(NODES, {})) == Localisation()
    assert localise([]) == Localisation()


def test_the_uplink_of_a_domain() -> None:
    found = localise(pairs(NODES, {("r1",): 3.0}))
    assert named(found) == [(("r1",),)]
    (slow,) = found.slow_links
    assert slow.factor == pytest.approx(3.0, rel=0.05)
    assert slow.confidence > 0.99
    assert len(slow.slow_groups) == 12
    assert slow.other_groups == ()


def test_a_node_and_not_its_uplink() -> None:
    found = localise(pairs(NODES, {("r1", "n10"): 2.0}))
    assert named(found) == [(("r1", "n10"),)]
    assert len(found.slow_links[0].slow_groups) == 7


def test_several_slow_links_with_different_factors() -> None:
    found = localise(pairs(NODES, {("r0",): 4.0, ("r2", "n21"): 1.6}))
    assert set(named(found)) == {(("r0",),), (("r2", "n21"),)}
    factors = {each.links[0]: each.factor for each in found.slow_links}
    assert factors["r0",] == pytest.approx(4.0, rel=0.05)
    assert factors["r2", "n21"] == pytest.approx(1.6, rel=0.05)


def test_links_that_the_same_groups_cross_are_one_answer() -> None:
    found = localise(pairs(NODES[:4], {("r0",): 3.0}))
    assert named(found) == [(("r0",), ("r1",))]


def test_another_job_tells_them_apart() -> None:
    one = pairs(NODES[:4], {("r0",): 3.0})
    other = pairs(NODES[2:6], {("r0",): 3.0}, job="ns/two")
    (found,) = localise([*one, *other]).slow_links
    assert found.links == (("r0",),)
    assert found.alternatives[0].links == (("r1",),)


def test_a_job_of_which_all_groups_are_slow_names_no_link() -> None:
    found = localise(pairs(NODES, {}, control=1.5))
    assert found.slow_links == ()
    assert found.slow_jobs == pytest.approx({"ns/one": 1.5}, rel=0.05)


@pytest.mark.parametrize("other", [1.0, 0.75, 0.4])
@pytest.mark.parametrize("rack", ["a", "b", "c"])
def test_one_group_that_is_not_slow_acquits_the_job(rack: str, other: float) -> None:
    """Each pair of racks has a group, and two groups span all racks."""
    groups = [("dp", "ab"), ("dp", "bc"), ("dp", "ac"), ("rep", "abc"), ("rep", "abc")]
    found = localise(
        [
            Observation(
                f"{label} {number}",
                "ns/one",
                label,
                crossed_links([(each, f"{each}{number}") for each in racks], 2),
                log(6.0 if rack in racks else other),
                0.02,
            )
            for number, (label, racks) in enumerate(groups)
        ]
    )
    assert named(found) == [((rack,),)]
    assert found.slow_jobs == {}


def test_a_slow_link_of_a_slow_job() -> None:
    found = localise(pairs(NODES, {("r1",): 3.0}, control=1.5))
    assert named(found) == [(("r1",),)]


def test_kinds_that_do_not_notice_do_not_acquit_a_link() -> None:
    slow = pairs(NODES, {("r1",): 3.0})
    others = [replace(each, group=f"{each.group} pp", label="pp") for each in pairs(NODES, {})]
    (found,) = localise([*slow, *others]).slow_links
    assert found.links == (("r1",),)
    assert len(found.other_groups) == 12


def test_one_slow_group_names_all_links_that_only_it_crosses() -> None:
    healthy = [replace(each, log_ratio=0.0) for each in pairs(NODES, {})]
    lone = crossed_links([("x", "x1"), ("y", "y1")], 2)
    found = localise([*healthy, Observation("lone", "ns/one", "dp", lone, log(2.0), 0.02)])
    assert named(found) == [(("x",), ("x", "x1"), ("y",), ("y", "y1"))]


def test_a_slowdown_within_the_noise_is_none() -> None:
    noisy = [replace(each, error=0.5) for each in pairs(NODES, {("r1",): 1.3})]
    assert localise(noisy).slow_links == ()


def test_a_small_slowdown_is_not_reported() -> None:
    assert localise(pairs(NODES, {("r1",): 1.15})).slow_links == ()


def test_the_order_of_groups_does_not_matter() -> None:
    observations = pairs(NODES, {("r0",): 4.0, ("r2", "n21"): 1.6})
    expected = named(localise(observations))
    for seed in range(5):
        random.Random(seed).shuffle(observations)
        assert named(localise(observations)) == expected


def test_a_sample_of_the_benchmark() -> None:
    cases = [case for case in random_cases(0, 60) if case.identifiable]
    assert len(cases) > 40
    assert sum(case.place == 1 for case in cases) >= 0.95 * len(cases)


def test_a_sample_of_healthy_jobs() -> None:
    for seed in range(4):
        rng, generator = random.Random(seed), np.random.default_rng(seed)
        fabric = random_fabric(rng)
        job = random_jobs(fabric, rng)[0]
        groups = job.groups(fabric)[:40]
        seconds = np.array(job.seconds(fabric, {}))[:40, None]
        noise = random_noise(rng, slow_spells=0.001).factors(len(groups), 720, generator)
        times = record_blocks(JobTimes(job.name), names(job, groups), groups, seconds * noise)
        for each in times:
            assert localise(each.observations()).slow_links == ()
