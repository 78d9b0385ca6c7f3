"""Recommendations for a user or a search text, each with a reason that the data support."""
