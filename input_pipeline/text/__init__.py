"""Converts sentences to the inputs of the text encoder."""
