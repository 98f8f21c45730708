"""Where the large computations of an opening run: threads of this process, or a Ray cluster."""
