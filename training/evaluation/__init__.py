"""Evaluate encoders: downstream tasks, calibration, robustness."""
