"""What is done with whole containers on top of the engine: checking them, and moving data in and out."""
