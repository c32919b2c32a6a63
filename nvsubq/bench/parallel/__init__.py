"""How large a field trains on some devices together, and what the exchange between them costs."""
