"""`python -m metrics.sweep plan.yaml`: see `jobs/sweep.py`."""

import sys

from ddpm.run.program import run_program
from metrics.jobs.sweep import main

if __name__ == "__main__":
    sys.exit(run_program(main))
