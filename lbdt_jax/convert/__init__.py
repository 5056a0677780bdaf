"""Converts between PyTorch state dicts of the published code and this model's variables."""
