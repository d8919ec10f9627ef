"""Rewards of a whole set of images, which credit each image with what it does to the set's score."""
