"""PyTorch state dicts of the published code <-> the variables of our modules."""
