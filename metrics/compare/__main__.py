"""`python -m metrics.compare RUN RUN`: see `comparison.py`."""

import sys

from ddpm.run.program import run_program
from metrics.compare.comparison import main

sys.exit(run_program(main))
