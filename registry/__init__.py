"""What exists: declarative cards and the registry that reads them. Imported as `alignbench.registry`."""

if __name__ == "registry":  # imported from a checkout as a top-level package
    raise ImportError("import alignbench.registry, not registry")
