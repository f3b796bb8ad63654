"""The training log: a page for researchers."""
