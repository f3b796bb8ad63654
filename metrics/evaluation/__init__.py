"""What `evaluate.py` measured, as plots, tables and words of the report."""
