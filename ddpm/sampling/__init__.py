"""Sampling from a trained model: pipeline, pictures, export."""
