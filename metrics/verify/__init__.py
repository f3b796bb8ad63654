"""The check that the figures of a run's pages are those of its data."""
