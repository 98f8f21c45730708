"""Base models on disk: fetched, made, described, and the defaults measured on them."""
