"""Builds engine packages: export, quantise, check parity, publish. Application code, run from the checkout."""
