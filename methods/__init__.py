"""One file a method. Imported as `alignbench.methods`."""

if __name__ == "methods":  # imported from a checkout as a top-level package
    raise ImportError("import alignbench.methods, not methods")
