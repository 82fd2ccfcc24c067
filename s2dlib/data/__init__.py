"""Video files -> batches of raw frames."""
