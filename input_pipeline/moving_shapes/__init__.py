"""Moving Shapes, the data set that draws itself, in the raw layout of A2D-Sentences."""
