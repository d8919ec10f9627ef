"""Pretrained generators: networks, checkpoint loading and token generation."""
