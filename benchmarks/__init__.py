"""Measurements: each prints a table and writes JSON with raw samples, versions and what was left out."""
