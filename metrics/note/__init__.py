"""Remarks of people about a run, with their times."""
