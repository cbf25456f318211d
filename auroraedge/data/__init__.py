"""Data sets: reading annotated folders, and making training samples."""
