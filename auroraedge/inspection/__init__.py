"""Inspection semantics shared by training and runtime: recipes, prompts, answer grammar, views, results. No torch."""
