"""What a device's state folder holds: its account and its pending session."""
