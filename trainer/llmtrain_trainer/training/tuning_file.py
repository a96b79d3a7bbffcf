"""What autotune has found out, by placement, in a file beside the checkpoints.

A restart, also in new pods on the same nodes, then has it. The file helps to save time only: if it
cannot be read or written, the settings are tried again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from llmtrain_core.api.status.communication import CommunicationTuning
from llmtrain_core.api.untrusted import read_json
from llmtrain_trainer.checkpoint.paths import Folder, make_dir
from llmtrain_trainer.runtime.untrusted_files import read_file

COMMUNICATION_FILE = "communication.json"
MAX_BYTES = 1 << 20
MAX_PLACEMENTS = 8
"""Placements that the file has at most: those that were written last."""

log = logging.getLogger(__name__)


class TuningFile:
    """The file in one folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._path = folder, folder / COMMUNICATION_FILE

    def read(self, placement: str) -> CommunicationTuning | None:
        """Return what is known of a placement, if anything."""
        return dict(self._entries()).get(placement)

    def write(self, placement: str, tuning: CommunicationTuning) -> None:
        """Write what is known of a placement."""
        entries = {key: each for key, each in self._entries() if key != placement}
        entries[placement] = tuning
        kept = [*entries.items()][-MAX_PLACEMENTS:]
        wire = [{"placement": key, "communication": each.to_wire()} for key, each in kept]
        content = (json.dumps(wire, indent=1) + "\n").encode()
        try:
            make_dir(self._folder)
            if isinstance(self._path, Path):
                draft = self._path.with_name(f".{COMMUNICATION_FILE}-{uuid4().hex}")
                draft.write_bytes(content)
                draft.replace(self._path)
            else:
                self._path.write_bytes(content)
        except Exception as error:  # store drivers raise any kind of error
            log.warning("cannot write %s: %r", self._path, error)

    def _entries(self) -> Iterator[tuple[str, CommunicationTuning]]:
        """Yield the valid entries of the file."""
        try:
            entries = read_json(read_file(self._path, MAX_BYTES))
        except FileNotFoundError:
            return
        except Exception as error:  # as above
            log.warning("cannot read %s: %r", self._path, error)
            return
        for entry in entries if isinstance(entries, list) else ():
            known = entry if isinstance(entry, dict) else {}
            placement = known.get("placement")
            tuning = CommunicationTuning.from_untrusted(known.get("communication"))
            if isinstance(placement, str) and tuning is not None:
                yield placement, tuning
            else:
                log.warning("%s has an entry that is not valid", self._path)
