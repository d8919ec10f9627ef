"""The one training loop and what it stands on: set-up, processes, checkpoints, signals."""
