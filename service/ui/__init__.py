"""The operator's page: live verdicts, review, recipes, engine status and the audit trail, in a browser.

`python -m service.ui` serves it as a process of its own on a result store; `serve_ui` runs it beside the gRPC server.
docs/operator-page.md is the guide.
"""
