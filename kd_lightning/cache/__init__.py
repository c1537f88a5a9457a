"""What a teacher said, kept on disk: written once (`kd cache`), read in every run."""
