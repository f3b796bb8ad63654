"""What is claimed about this project, measured. Each file says what it measures and prints its figures."""
