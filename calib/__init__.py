"""Calibration data for quantised engines."""
