"""Faster forms of the operations that XLA:CPU is slow at."""
