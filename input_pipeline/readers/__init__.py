"""Readers of raw datasets, one module each; see `input_pipeline.types.Reader`."""
