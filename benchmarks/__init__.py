"""Measurements beside controls and peers, one command each."""
