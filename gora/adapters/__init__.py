"""Adapters on disk: saving, loading, and the forms that other programs read."""
