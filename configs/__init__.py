"""One file per experiment, all based on base.py."""
