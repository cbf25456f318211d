"""Stored results as the page's scripts and templates get them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from auroraedge.inspection.results import Defect
from auroraedge.store import StoredResult
from service.ui.recipes import Recipes


def defects_json(recipes: Recipes, recipe_id: str, defects: Sequence[Defect], language: str) -> list[dict[str, Any]]:
    """Defects with the name and the style that they are shown with."""
    styles = recipes.styles(recipe_id, [defect.label for defect in defects])
    titles = recipes.titles(recipe_id, language)
    return [
        {
            "label": defect.label,
            "title": titles.get(defect.label, defect.label.replace("_", " ")),
            "severity": defect.severity.value,
            "confidence": defect.confidence,
            "box": [defect.box.x1, defect.box.y1, defect.box.x2, defect.box.y2] if defect.box else None,
            "color": styles[defect.label].hex,
            "dash": list(styles[defect.label].dash),
        }
        for defect in defects
    ]


def result_json(recipes: Recipes, stored: StoredResult, language: str) -> dict[str, Any]:
    """What lists, tiles and the viewer show of a result."""
    result, request = stored.result, stored.result.request
    titles = recipes.titles(result.recipe_id, language)
    predicted = result.predicted_class
    return {
        "seq": stored.seq,
        "id": result.result_id,
        "verdict": stored.effective_verdict.value,
        "modelVerdict": result.verdict.value,
        "reviewed": stored.review is not None,
        "reviewer": stored.review.reviewer if stored.review else "",
        "p": result.ng_probability,
        "createdAt": result.created_at.isoformat(),
        "line": request.line,
        "station": request.station,
        "camera": request.camera,
        "part": request.part_id,
        "lot": request.lot,
        "recipe": result.recipe_id,
        "recipeVersion": result.recipe_version,
        "defects": defects_json(recipes, result.recipe_id, stored.effective_defects, language),
        "predictedClass": titles.get(predicted, predicted) if predicted else "",
        "image": stored.image_sha256 if stored.has_image else None,
        "reference": stored.reference_sha256,
        "width": result.image_width,
        "height": result.image_height,
        "totalMs": result.timings.total_ms,
        "error": result.error.message if result.error else "",
        "warnings": list(result.warnings),
        "simulated": result.is_simulated,
    }
