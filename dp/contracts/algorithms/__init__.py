"""One declaration a file for each algorithm, and what several of them share."""
