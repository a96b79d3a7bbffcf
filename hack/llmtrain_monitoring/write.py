"""Write the dashboards and rules into the chart: `python -m llmtrain_monitoring.write`."""

from __future__ import annotations

from pathlib import Path

import yaml

from llmtrain_monitoring.dashboards import DASHBOARDS
from llmtrain_monitoring.grafana import render
from llmtrain_monitoring.paths import FILES
from llmtrain_monitoring.rules import RULE_FILES

_WRITTEN = "# Written by `make monitoring` from hack/llmtrain_monitoring.\n"


def contents() -> dict[str, str]:
    """Return the text of each file, by its path below the folder `files` of the chart."""
    dashboards = {
        f"dashboards/{page.uid.removeprefix('llmtrain-')}.json": render(page) for page in DASHBOARDS
    }
    rules = {
        f"rules/{name}.yaml": _WRITTEN
        + yaml.safe_dump(
            {"groups": [group.manifest() for group in groups]},
            sort_keys=False,
            width=100,
            allow_unicode=True,
        )
        for name, groups in RULE_FILES.items()
    }
    return dashboards | rules


def main() -> None:
    """Write all files and remove those that are no longer written."""
    written = contents()
    for folder in {Path(name).parent for name in written}:
        for old in (FILES / folder).glob("*"):
            if f"{folder}/{old.name}" not in written:
                old.unlink()
    for name, text in written.items():
        path = FILES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        print(path)


if __name__ == "__main__":
    main()
