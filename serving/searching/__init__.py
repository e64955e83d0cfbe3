"""Answer searches: queries, filters, batching."""
