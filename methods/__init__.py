"""Methods, imported as `alignbench.methods`.

A file each: `vapi` (and reward-only), `ste`, `tokenizer_decoder`, `ar_grpo`, `ntp`. Shared by them:
`policy_gradient`, `image_rewards`, `logits`.
"""

if __name__ == "methods":  # imported from a checkout as a top-level package
    raise ImportError("import alignbench.methods, not methods")
