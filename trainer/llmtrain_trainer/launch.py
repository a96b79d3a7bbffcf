"""The command of a training pod: `python -m llmtrain_trainer.launch` (the pod contract)."""

from __future__ import annotations

import os
import sys

from llmtrain_trainer.launcher.launcher import main

if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    # Exit at once: the thread that imports torch may still run, and would be waited for.
    os._exit(exit_code)
