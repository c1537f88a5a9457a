"""What keeps a long run from losing its work."""
