"""Containers that are kept as files, and what they hold."""
