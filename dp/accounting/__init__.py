"""What releases cost: events, their Renyi curves, statements per unit, and the account."""
