"""What to run: one file per experiment, all built on base.py."""
