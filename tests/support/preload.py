"""Loaded once by the server that the test processes are forked from."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

from ddpm.run.config import preset
from tests.conftest import SMALL
from tests.support.runs import flops_per_image

flops_per_image(preset("tiny", **SMALL))
