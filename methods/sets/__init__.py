"""Rewards of a whole set of images, as methods use them."""
