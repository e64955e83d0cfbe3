"""Review a collection: find likely wrong labels, near-duplicates and outliers, and apply decisions about them."""
