"""What a container means: volumes, snapshots, clones, and how their tables relate."""
