"""Search sealed rows on a GPU."""
