"""Readers of raw data sets, one module each; see `input_pipeline.types.Reader`."""
