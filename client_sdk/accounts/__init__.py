"""What was spent: by a device, of a data set, and found again after a loss."""
