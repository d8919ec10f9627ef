"""Scores of decoded images that training can use; cards in `registry/rewards/` name their builders."""
