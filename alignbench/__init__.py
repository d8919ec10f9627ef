"""alignbench: a benchmark of post-training methods for autoregressive image generators.

Importing this package imports neither torch nor any implementation.
"""

__version__ = "0.1.0"
