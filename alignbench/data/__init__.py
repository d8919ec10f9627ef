"""Training images with labels or captions: fixed, numbered lists that know no order, batch or torch."""
