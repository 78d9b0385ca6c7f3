"""Recommendations for one user or for words, each with a reason that is true of the data."""
