"""Knowledge drawn out of generators: records, steps that make them, sets of them on disk."""
