"""Scores of an inspector on annotated images, with intervals and a classical baseline beside them. No torch."""

from auroraedge.evaluate.run import SET_RECIPES, evaluate, predictor_name, recipe_for
from auroraedge.evaluate.schema import EvalReport
from auroraedge.evaluate.table import print_report, render_table

__all__ = ["SET_RECIPES", "EvalReport", "evaluate", "predictor_name", "print_report", "recipe_for", "render_table"]
