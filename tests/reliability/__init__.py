"""Searches for ways to lose something (docs/reliability.md)."""
