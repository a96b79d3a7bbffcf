"""Run the calibration: `python -m llmtrain_trainer.calibration -o FILE`."""

from __future__ import annotations

from llmtrain_trainer.calibration.calibrate import main

if __name__ == "__main__":
    main()
