"""Benchmarks of what the documentation claims. Each file says what it measures and prints its figures."""
