"""The CustomResourceDefinitions as templates of the chart, generated from the API models."""

from __future__ import annotations

from llmtrain_core.api.crd import crds, render

HEAD = """\
{{- /* Generated from core/llmtrain_core/api by `make chart`; do not edit. */ -}}
{{- if .Values.crds.install }}
"""
METADATA = """\
metadata:
  {{- include "llmtrain.crdMetadata" (dict "root" $ "name" "NAME") | nindent 2 }}
"""


def crd_templates() -> dict[str, str]:
    """Return the templates by file name."""
    names = [crd["metadata"]["name"] for crd in crds()]
    return {
        file: _template(text, name)
        for (file, text), name in zip(render().items(), names, strict=True)
    }


def _template(text: str, name: str) -> str:
    lines = text.splitlines(keepends=True)
    body = "".join(line for line in lines if not line.startswith("#"))
    # Descriptions may contain what is an action in a template.
    escaped = body.replace("{{", '{{ "{{" }}')
    plain = f"metadata:\n  name: {name}\n"
    assert escaped.count(plain) == 1
    return HEAD + escaped.replace(plain, METADATA.replace("NAME", name)) + "{{- end }}\n"
