"""Check our arithmetic against numbers of the official implementations: `alignbench verify --golden DIR`."""
