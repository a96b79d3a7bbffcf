"""A contract type for import-linter: the external packages that a package may import."""

from __future__ import annotations

import sys

import grimp
from importlinter import Contract, ContractCheck, fields, output


class AllowedExternals(Contract):
    """Allow imports of the listed external packages only.

    A list of forbidden packages would miss a new library.
    """

    type_name = "allowed_externals"

    package = fields.ModuleField()
    allowed = fields.SetField(subfield=fields.StringField())
    standard_library = fields.BooleanField(required=False, default=True)
    """Allow the whole standard library; if false, its modules must be listed too."""

    def check(self, graph: grimp.ImportGraph, verbose: bool) -> ContractCheck:
        """Find direct imports of external packages that are not listed."""
        package = str(self.package)
        allowed: set[str] = set(self.allowed)  # type: ignore[call-overload]
        if self.standard_library:
            allowed |= sys.stdlib_module_names
        ours = {module.partition(".")[0] for module in graph.modules}
        ours -= {module for module in ours if graph.is_module_squashed(module)}
        found = [
            (importer, imported)
            for importer in sorted({package, *graph.find_descendants(package)})
            for imported in sorted(graph.find_modules_directly_imported_by(importer))
            if imported.partition(".")[0] not in allowed | ours
        ]
        return ContractCheck(kept=not found, metadata={"imports": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print the imports that are not allowed."""
        for importer, imported in check.metadata["imports"]:
            output.print_error(f"- {importer} -> {imported}: not in the list of allowed packages")
