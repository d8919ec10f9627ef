"""Many runs from one card: which there are, their table, the page, what a paper says of it."""
