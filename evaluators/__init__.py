"""One file an evaluator; GenEval has a package. `prompt_match` is what CLIP score and HPS share.

Imported as `alignbench.evaluators`.
"""

if __name__ == "evaluators":  # imported from a checkout as a top-level package
    raise ImportError("import alignbench.evaluators, not evaluators")
