"""Loaded once by the server that the test processes are forked from."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import train  # noqa: F401
