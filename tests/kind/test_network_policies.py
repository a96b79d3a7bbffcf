"""The NetworkPolicies of jobs and of the operator are in force, and let through what is needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from llmtrain_core.images import OPERATOR
from llmtrain_kind.cluster import WORKERS, KindCluster
from tests.support.kind.jobs import Team
from tests.support.kind.probe import Probe, listener
from tests.support.kind.prometheus import NAMESPACE as MONITORING
from tests.support.kind.release import SYSTEM, KindRelease
from tests.support.kind.steps import step

pytestmark = [pytest.mark.kind, pytest.mark.timeout(1600)]

METRICS, RENDEZVOUS, OTHER = 9400, 29500, 8000
LONG = 1_000_000


@pytest.fixture
def scraper(kind: KindCluster) -> Iterator[Probe]:
    """A pod in the namespace of Prometheus, which is created and deleted around the test."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": MONITORING}}
    kind.kubectl.apply(namespace, listener("scraper", MONITORING, OPERATOR, OTHER))
    kind.kubectl("wait", "-n", MONITORING, "--for=condition=Ready", "pod/scraper", "--timeout=120s")
    yield Probe(kind.kubectl, MONITORING, "scraper")
    kind.kubectl("delete", "namespace", MONITORING, "--timeout=120s")


def test_only_the_gang_and_the_scraper_reach_a_gang(
    kind: KindCluster, release: KindRelease, team: Team, scraper: Probe
) -> None:
    with step("a job trains, and a foreign pod on each node"):
        team.submit("closed", LONG)
        names = [f"foreign-{index}" for index in range(len(WORKERS))]
        for name, node in zip(names, WORKERS, strict=True):
            kind.kubectl.apply(listener(name, team.namespace, OPERATOR, OTHER, node))
        team("wait", "--for=condition=Ready", "pod", *names, "--timeout=120s")
        team.trains("closed")
    head, peer = team.pods()
    address = head["status"]["podIP"]
    with step("the gang reaches itself"):
        inside = Probe(kind.kubectl, team.namespace, peer["metadata"]["name"])
        assert inside.connect(address, RENDEZVOUS) == "open"
        assert inside.connect(address, METRICS) == "open"
    with step("the scraper reaches the metrics only"):
        assert scraper.connect(address, METRICS) == "open"
        assert scraper.connect(address, RENDEZVOUS) != "open"
    for name in names:
        with step(f"{name} reaches no port of the gang"):
            probe = Probe(kind.kubectl, team.namespace, name)
            assert probe.connect(address, METRICS) != "open"
            assert probe.connect(address, RENDEZVOUS) != "open"
            for other in names:
                where = ("get", "pod", other, "--output=jsonpath={.status.podIP}")
                assert probe.connect(team(*where), OTHER) == "open"
    with step("the job went on"):
        status = team.trains("closed", after=team.status("closed")["progress"]["step"])
        assert status.get("restarts", 0) == 0


def test_the_operator_connects_only_where_it_has_to(
    kind: KindCluster, release: KindRelease, team: Team
) -> None:
    kind.kubectl.apply(listener("foreign", team.namespace, OPERATOR, OTHER))
    team("wait", "--for=condition=Ready", "pod/foreign", "--timeout=120s")
    label = "app.kubernetes.io/component=operator"
    (operator,) = kind.kubectl.get("pods", "-n", SYSTEM, "--selector", label)["items"]
    foreign = team("get", "pod", "foreign", "--output=jsonpath={.status.podIP}")
    with step("from the operator"):
        inside = Probe(kind.kubectl, SYSTEM, operator["metadata"]["name"])
        assert inside.connect("kubernetes.default.svc", 443) == "open"
        assert inside.connect(foreign, OTHER) != "open"
    with step("to the operator"):
        probe = Probe(kind.kubectl, team.namespace, "foreign")
        address = operator["status"]["podIP"]
        assert probe.connect(address, 9090) == "open"
        inside.listen(OTHER)
        assert inside.connect("127.0.0.1", OTHER) == "open"
        assert probe.connect(address, OTHER) != "open"
        assert probe.connect(foreign, OTHER) == "open"
