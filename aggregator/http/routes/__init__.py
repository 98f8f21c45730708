"""HTTP routes. Each module has ``routes(service)``; handlers only translate."""
