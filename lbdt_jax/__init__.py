"""Referring video object segmentation in JAX: a video and a sentence go in, the mask of that object comes out."""
