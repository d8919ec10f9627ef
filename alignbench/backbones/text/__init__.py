"""Text encoders: captions become features."""
