"""The order of the tiers of `make test`, with commands that write to a file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import tiers

pytestmark = pytest.mark.unit

WAIT = "import pathlib, time\nwhile not pathlib.Path('{}').exists(): time.sleep(0.01)\n"
NOTE = "with open('{}', 'a') as log: log.write('{}')\n"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tiers of which `slow` runs beside `b` and `c`, and waits for a file that `c` makes; `late`
    follows `slow`, and `d` follows all of them.
    """
    file, released = tmp_path / "log", tmp_path / "released"

    def command(name: str, before: str = "", after: str = "") -> list[list[str]]:
        return [[sys.executable, "-c", before + NOTE.format(file, name) + after]]

    release = f"open('{released}', 'w').close()\n"
    found = {
        "a": command("a"),
        "b": command("b"),
        "c": command("c", after=release),
        "d": command("d"),
        "slow": command("s", before=WAIT.format(released), after="print('the end of slow')"),
        "late": command("l", after="print('the end of late')"),
        "bad": command("x", after="raise SystemExit(3)"),
    }
    monkeypatch.setattr(tiers, "TIERS", found)
    stages = ((("a",),), (("b", "c"), ("slow", "late")), (("bad",),), (("d",),))
    monkeypatch.setattr(tiers, "STAGES", stages)
    return file


def test_a_lane_runs_beside_another_and_ends_before_the_next_stage(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tiers.main(["a", "b", "c", "d", "slow", "late"]) == 0
    assert log.read_text() == "abcsld"
    shown = capfd.readouterr().out
    assert "== slow beside\n" in shown and "== d\n" in shown
    output = shown.index("== output of slow, late")
    assert output < shown.index("the end of slow") < shown.index("the end of late")
    assert shown.index("the end of late") < shown.index("== d")


def test_a_lane_alone_shows_its_output_at_once(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (log.parent / "released").touch()
    assert tiers.main(["d", "slow"]) == 0
    assert log.read_text() == "sd"
    assert "== output of" not in capfd.readouterr().out


def test_a_failure_ends_the_run_with_its_code(
    log: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiers.main(["a", "bad", "d"]) == 3
    assert log.read_text() == "ax"
    assert "run it alone with: python hack/tiers.py bad" in capfd.readouterr().out


@pytest.mark.parametrize(
    "lanes", [(("slow", "late"), ("c", "bad", "b")), (("c", "bad", "b"), ("slow", "late"))]
)
def test_after_a_failure_no_tier_starts_in_any_lane(
    lanes: tuple[tuple[str, ...], ...], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`slow` begins before `bad` has failed, and ends a moment after its process is gone."""
    failing = log.parent / "failing"
    fail = f"import os\nos.symlink(f'/proc/{{os.getpid()}}', '{failing}')\nraise SystemExit(3)"
    tiers.TIERS["bad"] = [[sys.executable, "-c", fail]]
    wait = (
        "import os, time\n"
        f"while not os.path.islink('{failing}') or os.path.exists('{failing}'): time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
    )
    tiers.TIERS["slow"] = [[sys.executable, "-c", wait + NOTE.format(log, "s")]]
    monkeypatch.setattr(tiers, "STAGES", (lanes, (("d",),)))
    assert tiers.main(["b", "c", "d", "slow", "late", "bad"]) == 3
    assert log.read_text() == "cs"


def test_an_unknown_tier_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert tiers.main(["lint", "units"]) == 2
    assert "no tier 'units'" in capfd.readouterr().err


def test_each_tier_runs_once_and_one_at_a_time_has_a_docker_engine() -> None:
    lanes = [lane for stage in tiers.STAGES for lane in stage]
    assert sorted(tier for lane in lanes for tier in lane) == sorted(tiers.TIERS)
    assert [lane for lane in lanes if {"kind", "readme"} & set(lane)] == [("kind", "readme")]


def test_serial_and_perf_have_the_machine_for_themselves() -> None:
    assert tiers.STAGES[0] == (("lint",),)
    for tier in ("serial", "perf"):
        assert ((tier,),) in tiers.STAGES
