"""Moving Shapes: a synthetic data set that is generated on first use, in the raw layout of A2D-Sentences."""
