"""Write all generated files of the chart: `python -m llmtrain_chart`."""

from __future__ import annotations

import sys
from pathlib import Path

from llmtrain_chart.crd_templates import crd_templates
from llmtrain_chart.deploy import deploy_text
from llmtrain_chart.helm import HelmError
from llmtrain_chart.paths import CHART, DEPLOY
from llmtrain_chart.readme import readme_text
from llmtrain_chart.schema import schema_text
from llmtrain_chart.values_file import values_text


def chart_files() -> dict[Path, str]:
    """Return the generated files of the chart."""
    return {
        CHART / "values.yaml": values_text(),
        CHART / "values.schema.json": schema_text(),
        CHART / "README.md": readme_text(),
        **{CHART / "templates" / "crds" / name: text for name, text in crd_templates().items()},
    }


def main() -> int:
    """Write the chart, then what is rendered from it, and return the exit code."""
    for path, text in chart_files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    try:
        DEPLOY.mkdir(exist_ok=True)
        (DEPLOY / "llmtrain.yaml").write_text(deploy_text(), encoding="utf-8")
    except HelmError as error:
        print(f"chart: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
