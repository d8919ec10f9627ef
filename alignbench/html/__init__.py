"""Pages for a browser: one self-contained file each, made with jinja2 from the same data as Markdown."""
