"""The command of a training pod, as in the pod contract: `python -m llmtrain_trainer.launch`."""

from __future__ import annotations

import os
import sys

from llmtrain_trainer.launcher.launcher import main

if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    # Exit at once: otherwise Python waits for the thread that imports torch, if it still runs.
    os._exit(exit_code)
