"""The operator's configuration from flags and environment variables."""

from __future__ import annotations

import json

import pytest

from llmtrain_operator.config import LeaseTiming, parse
from llmtrain_operator.errors import ConfigError

pytestmark = pytest.mark.unit


def test_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse([]).timing == LeaseTiming(15.0, 10.0, 2.0)
    monkeypatch.setenv("LLMTRAIN_OPERATOR_METRICS_PORT", "1234")
    monkeypatch.setenv("LLMTRAIN_OPERATOR_COUNT_FOREIGN_PODS", "false")
    found = parse(["--namespace", "team", "--health-port=7"])
    assert (found.namespace, found.metrics_port, found.health_port) == ("team", 1234, 7)
    assert found.count_foreign_pods is False
    with pytest.raises(ConfigError, match="max-active-jobs"):
        parse(["--max-active-jobs=0"])
    assert found.max_excluded_nodes_percent == 10.0
    with pytest.raises(ConfigError, match="max-excluded-nodes-percent"):
        parse(["--max-excluded-nodes-percent=101"])
    with pytest.raises(ConfigError, match="renew-deadline"):
        parse(["--renew-deadline=20"])


def test_limits_of_drains_and_of_unknown_ends() -> None:
    found = parse([])
    assert (found.drain_timeout, found.unknown_start_window) == (600.0, 3600.0)
    found = parse(["--drain-timeout=30", "--unknown-start-window=60"])
    assert (found.drain_timeout, found.unknown_start_window) == (30.0, 60.0)


def test_peers_of_the_metrics_port(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse([]).metrics_peers == () and parse(["--metrics-peers=[]"]).metrics_peers == ()
    peer = '{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "prometheus"}}}'
    assert parse([f"--metrics-peers=[{peer}]"]).metrics_peers == (json.loads(peer),)
    for wrong in ("", "x", "{}", "[{}]", "[1]", peer, '[{"podselector": {}}]'):
        with pytest.raises(SystemExit):
            parse([f"--metrics-peers={wrong}"])
        assert "--metrics-peers" in capsys.readouterr().err
    monkeypatch.setenv("LLMTRAIN_OPERATOR_METRICS_PEERS", "[{}]")
    with pytest.raises(ConfigError, match="LLMTRAIN_OPERATOR_METRICS_PEERS"):
        parse([])


def test_metadata_of_the_lease(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse([]).lease_metadata == {}
    found = {"labels": {"a": "b"}, "annotations": {"c": "d"}}
    assert parse([f"--lease-metadata={json.dumps(found)}"]).lease_metadata == found
    for wrong in ("", "[]", '{"name": {}}', '{"labels": []}', '{"labels": {"a": 1}}'):
        with pytest.raises(SystemExit):
            parse([f"--lease-metadata={wrong}"])
        assert "--lease-metadata" in capsys.readouterr().err


def test_changes_of_the_table_of_node_health(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse([]).node_health == () and parse(["--node-health=[]"]).node_health == ()
    [row] = parse(['--node-health=[{"name": "aks/*", "strength": "off"}]']).node_health
    assert (row.name, row.strength) == ("aks/*", "off")
    wrong = '[{"name": "aks/GPUMissing", "strength": "drain"}]'
    for text, named in (
        (wrong, "row aks/GPUMissing: strength"),
        ("[", "is not JSON"),
        ("{}", "list"),
    ):
        with pytest.raises(SystemExit):
            parse([f"--node-health={text}"])
        said = capsys.readouterr().err
        assert "--node-health" in said and named in said
    monkeypatch.setenv("LLMTRAIN_OPERATOR_NODE_HEALTH", wrong)
    with pytest.raises(ConfigError, match="LLMTRAIN_OPERATOR_NODE_HEALTH: row aks/GPUMissing"):
        parse([])


def test_the_tolerance_of_domains_is_a_share(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse([]).domain_tolerance == 0.01
    assert parse(["--domain-tolerance=0"]).domain_tolerance == 0.0
    for wrong in ("1", "-0.1", "nan", "1%", ""):
        with pytest.raises(SystemExit):
            parse([f"--domain-tolerance={wrong}"])
        assert "--domain-tolerance" in capsys.readouterr().err
    monkeypatch.setenv("LLMTRAIN_OPERATOR_DOMAIN_TOLERANCE", "0.05")
    assert parse([]).domain_tolerance == 0.05
