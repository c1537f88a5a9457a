"""What keeps foreign files, foreign programs and secrets where they belong."""
