"""Measure what a review finds: planted copies, and labels that were changed."""
