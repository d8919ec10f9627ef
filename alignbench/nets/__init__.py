"""Frozen feature networks that rewards and evaluators share. Nothing here is trained or post-trained."""
