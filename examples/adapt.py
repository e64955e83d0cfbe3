# %% [markdown]
# # Adapt an encoder
#
# A small head, trained on the embeddings of your photos by SupCon, often makes an encoder much better for your classes, in minutes of CPU.

# %%
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def imagekin(*arguments: str) -> Any:
    """Run the command and return its last line, which is JSON."""
    command = [sys.executable, "-m", "imagekin", *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


if not Path("model.onnx").exists():
    imagekin("adopt", "efficientnet-lite0", "--out", "model.onnx")

# %% [markdown]
# `adapt` holds a fifth of the photos out, and says how well nearest neighbours name them before and after. `--anyway` writes the model even where it is no better.

# %%
report = imagekin("adapt", "model.onnx", "photos", "--out", "adapted.onnx", "--anyway")
print(f"held out: {report['knn_before']:.1%} before, {report['knn_after']:.1%} after")

# %% [markdown]
# The adapted model is another embedding space, so it gets a collection of its own. Photos that neither has seen are in `held-out`, by class as well.

# %%
if Path("held-out").is_dir():
    for name, model in (("as-it-is", "model.onnx"), ("adapted", "adapted.onnx")):
        imagekin("index", name, "photos", "--model", model, "--data-dir", "data")
        answers = imagekin("classify", "held-out", "--collection", name, "--model", model, "--data-dir", "data")
        print(f"{name}: {answers['accuracy']:.1%} of {answers['images']} photos")
