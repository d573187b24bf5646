"""Evaluation: statistics that every task's metrics share."""

from .statistics import Interval, mean_interval, paired_difference_interval, wilson_interval

__all__ = ["Interval", "mean_interval", "paired_difference_interval", "wilson_interval"]
