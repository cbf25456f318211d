"""Waiting for a page. Playwright's own wait_for_function needs eval, which the page's security policy forbids."""

from __future__ import annotations

import time
from typing import Any


def until(page: Any, expression: str, timeout_s: float = 10.0) -> None:
    """Waits until a JavaScript expression is true, also over a change of the page. Raises AssertionError."""
    from playwright.sync_api import Error

    end = time.monotonic() + timeout_s
    while True:
        try:
            if page.evaluate(expression):
                return
        except Error as error:
            if "context was destroyed" not in str(error):
                raise
        shown = f"{expression} stays false on {page.url}"
        assert time.monotonic() < end, f"{shown}: {page.locator('main').inner_text()[:500]}"
        page.wait_for_timeout(20)
