"""Whole jobs: a plan goes in, a record comes out."""
