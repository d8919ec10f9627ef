"""Check our arithmetic against numbers made by the official implementations: `alignbench verify --golden DIR`."""
