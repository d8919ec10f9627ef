"""Make the shipped weights of the embedded default from scratch: `alignbench pretrain llamagen-tiny`."""
