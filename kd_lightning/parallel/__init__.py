"""Models over many processes: sharding, its strategy, its checkpoints."""
