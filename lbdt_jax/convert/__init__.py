"""Converts weights: state dicts of the published code and back, pretrained encoders, and folders to share."""
