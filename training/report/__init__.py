"""A run's report: what its scores are made of, as `details.json` and as one self-contained `report.html`."""
