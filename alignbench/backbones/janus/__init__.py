"""Janus-Pro on transformers: model, prompts and released files."""
