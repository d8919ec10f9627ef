"""Run records become tables, comparisons and text. Imports no torch."""
