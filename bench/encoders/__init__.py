"""Adapting and fine-tuning, beside what others would write."""
