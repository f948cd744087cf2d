"""Data-set readers, metrics, accuracy and latency."""
