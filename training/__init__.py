"""Makes the model artifact: data, views, objectives, the loop, evaluation and export (the only user of torch)."""

import os

# Threads of torch that wait for one another spin, and on a machine that is busy with anything else they then spin
# against the very work they wait for: measured 24 images/s instead of 265 beside two other processes (grocery photos,
# two cores). The OpenMP runtime reads this once, when torch is loaded; hence here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
