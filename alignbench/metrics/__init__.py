"""Arithmetic of distribution metrics: feature rows in, numbers out, everything in float64."""
