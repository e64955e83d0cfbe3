"""Tests of index/ingest/."""
