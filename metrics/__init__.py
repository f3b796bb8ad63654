"""What a run publishes and what is made from it: tracker, status, plots, report."""
