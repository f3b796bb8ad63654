"""What `train.py` is made of, one concept a file. Importing the package imports nothing else."""
