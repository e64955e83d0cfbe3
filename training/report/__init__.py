"""Report on a run in detail, as `details.json` and as one self-contained `report.html`."""
