"""Make the model artifact: data, views, objectives, the loop, evaluation and export (the only user of torch)."""

import os

if __name__ != "imagekin.training":
    raise ImportError("import imagekin.training, not training: under two names, every class would exist twice")

# Waiting threads of torch spin by default, and on a busy machine they take the cores from the very threads they wait
# for: measured 24 images/s instead of 265 beside two other processes (grocery photos, two cores). The OpenMP runtime
# reads the variable once, when torch is loaded, so it is set here.
if os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE") == "PASSIVE":
    # GNU's runtime, which torch's wheels contain, can spin for some 0.2 ms first: measured 1,397 images/s instead of
    # 1,263, and no difference beside a busy process (tiny encoder, 32 pixels, two cores).
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
