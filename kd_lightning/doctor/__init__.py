"""Is this run going to work? Everything that can be known before a run, in one look."""
