"""Loggers beside the run's own files: TensorBoard and Weights & Biases."""
