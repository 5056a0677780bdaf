"""Raw data sets -> TFRecords -> batches of numpy arrays. Uses TensorFlow and numpy, never JAX."""
