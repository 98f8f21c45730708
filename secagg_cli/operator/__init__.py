"""What an operator does: serve, tasks, partners, devices, exported models."""
