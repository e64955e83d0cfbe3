"""Select items by conditions on key, label and payload."""
