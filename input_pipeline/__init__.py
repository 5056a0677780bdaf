"""Raw datasets -> TFRecords -> batches of numpy arrays. Uses TensorFlow and numpy, never JAX."""
