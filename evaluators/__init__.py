"""One file an evaluator. Imported as `alignbench.evaluators`."""

if __name__ == "evaluators":  # imported from a checkout as a top-level package
    raise ImportError("import alignbench.evaluators, not evaluators")
