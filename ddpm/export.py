"""`python -m ddpm.export RUN`: see `sampling/export.py`."""

import sys

from ddpm.run.program import run_program
from ddpm.sampling.export import main

if __name__ == "__main__":
    sys.exit(run_program(main))
