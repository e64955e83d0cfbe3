"""Makes the model artifact: data, views, objectives, the loop, evaluation and export (the only user of torch)."""
