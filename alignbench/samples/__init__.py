"""Image sets to score: generated, reconstructed, real or external, read in shards."""
