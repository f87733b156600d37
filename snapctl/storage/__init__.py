"""Durability: the container file, its pages, the space map, the trees of tables, commit and recovery."""
