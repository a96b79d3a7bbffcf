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
    """Tiers of which `slow` runs beside `b` and `c`, and waits for a file that `c` makes."""
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
        "bad": command("x", after="raise SystemExit(3)"),
    }
    monkeypatch.setattr(tiers, "TIERS", found)
    monkeypatch.setattr(tiers, "BESIDE", {"slow": ("b", "c")})
    return file


def test_a_tier_runs_beside_others_and_ends_before_the_next(
    log: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert tiers.main(["a", "b", "c", "d", "slow"]) == 0
    assert log.read_text() == "abcsd"
    shown = capfd.readouterr().out
    assert "== b beside slow\n" in shown and "== d\n" in shown
    assert shown.index("== output of slow") < shown.index("the end of slow") < shown.index("== d")


def test_a_tier_alone_runs_beside_nothing(log: Path) -> None:
    (log.parent / "released").touch()
    assert tiers.main(["d", "slow"]) == 0
    assert log.read_text() == "ds"


def test_a_failure_ends_the_run_with_its_code(
    log: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tiers.main(["a", "bad", "d"]) == 3
    assert log.read_text() == "ax"
    assert "run it alone with: python hack/tiers.py bad" in capfd.readouterr().out
    log.unlink()
    monkeypatch.setattr(tiers, "BESIDE", {"bad": ("b", "c")})
    assert tiers.main(["b", "c", "d", "bad"]) == 3
    assert sorted(log.read_text()) == ["b", "c", "x"], "nothing starts after it"


def test_an_unknown_tier_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert tiers.main(["lint", "units"]) == 2
    assert "no tier 'units'" in capfd.readouterr().err


def test_one_tier_at_a_time_has_a_docker_engine() -> None:
    assert not set(tiers.BESIDE["kind"]) & set(tiers.BESIDE["readme"])
    assert {"kind", "readme"} == set(tiers.BESIDE)
    (last,) = (name for name in tiers.TIERS if name in tiers.BESIDE["readme"][-1:])
    assert last == "e2e" and [*tiers.TIERS].index(last) < [*tiers.TIERS].index("perf")
