"""A function for each command: what the command line and `alignbench` itself offer."""
