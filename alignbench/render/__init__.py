"""Tables as text: one small file a format."""
