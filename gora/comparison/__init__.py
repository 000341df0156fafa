"""Runs side by side: which there are, what they share, and the tables that come of them."""
