"""Clients as this replica has them: their streams, and what they send on its way into Redis."""
