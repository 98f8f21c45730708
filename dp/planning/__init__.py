"""What releases and whole tasks will cost, before they exist."""
