"""Runs as jobs: sweeps, and what becomes of a Slurm job after each start."""
