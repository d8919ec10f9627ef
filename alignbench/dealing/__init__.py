"""Units of work that several processes claim one by one, and a simulation of how well that fills them."""
