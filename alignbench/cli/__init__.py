"""The command line. Nothing imports it; commands import what is heavy inside themselves."""
