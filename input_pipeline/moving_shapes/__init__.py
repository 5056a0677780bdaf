"""Moving Shapes: a synthetic dataset that is generated on first use, in the raw layout of A2D-Sentences."""
