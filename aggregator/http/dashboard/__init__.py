"""Server-rendered pages for the operator; no framework, no script."""
