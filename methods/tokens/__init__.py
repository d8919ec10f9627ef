"""Weights of single tokens in policy gradients."""
