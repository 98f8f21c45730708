"""Who shares masks with whom, and which degrees and thresholds are safe."""
