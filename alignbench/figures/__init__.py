"""Runs to pictures with the numbers behind them: curves, trade-offs, bars, embeddings, samples."""
