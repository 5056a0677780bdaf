"""Raw data sets -> TFRecords -> batches of numpy arrays. Knows TensorFlow and numpy, never jax."""
