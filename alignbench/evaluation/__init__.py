"""A protocol applied to image sets: features, metrics, results; resumable."""
