"""Runs as jobs: sweeps, and requeueing and summaries of Slurm jobs."""
