"""Noise and coins as exact integers, and the grid, rotation and clip in front of them."""
