"""`python -m metrics.health RUN`: see `checker.py`."""

import sys

from ddpm.run.program import run_program
from metrics.health.checker import main

if __name__ == "__main__":
    sys.exit(run_program(main))
