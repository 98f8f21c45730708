"""What a device keeps on disk: sealed, synced, and owned by one identity."""
