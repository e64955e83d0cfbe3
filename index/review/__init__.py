"""Find what a person should look at in a collection: doubtful labels, near-duplicates, outliers, what to label next."""
