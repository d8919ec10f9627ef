"""Names and `--set key=value` become a checked plan. Imports no torch."""
