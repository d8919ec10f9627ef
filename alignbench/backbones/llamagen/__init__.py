"""LlamaGen: GPT, VQ tokenizer and the backbone made of both."""
