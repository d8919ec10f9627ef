"""Hugging Face data sets: of the hub, streamed or whole, or a folder written by `save_to_disk`."""
