"""Benches of the database: what a trial costs there, many workers, and many trials."""
