"""GenEval: detectors, colours and the official rules."""
