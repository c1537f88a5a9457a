"""Student beside teacher beside baseline: measurements, tables, plots, export."""
