"""Make the model artifact: data, views, objectives, the loop, evaluation and export (the only user of torch)."""

import os

if __name__ != "imagekin.training":
    raise ImportError("import imagekin.training, not training: under two names, every class would exist twice")

# Threads of torch that wait for one another spin, and on a machine that is busy with anything else they then spin
# against the very work they wait for: measured 24 images/s instead of 265 beside two other processes (grocery photos,
# two cores). The OpenMP runtime reads this once, when torch is loaded; hence here.
if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE") == "PASSIVE":
    # GNU's runtime, which torch's wheels bring, can spin a little first, by its own count some 0.2 ms: measured 1,397
    # images/s instead of 1,263, and beside a busy process no difference (tiny encoder, 32 pixels, two cores).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
