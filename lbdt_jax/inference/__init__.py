"""Segmenting videos with a trained model."""
