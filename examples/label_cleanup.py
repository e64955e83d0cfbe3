# %% [markdown]
# # Label clean-up
#
# Photos in the wrong folder spoil everything that is learned from them. Neighbours tell on them.

# %%
import csv
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
imagekin("index", "clean", "photos", "--model", "model.onnx", "--data-dir", "data")

# %% [markdown]
# How well do the items name one another, each left out in turn?

# %%
before = imagekin("collection", "evaluate", "clean", "--data-dir", "data")
print(f"{before['accuracy']:.1%} of {before['items']} photos are named as their folder is")

# %% [markdown]
# The review lists the labels that the neighbours contradict, the surest first.

# %%
table = Path("clean-review.csv")
imagekin("review", "clean", "--data-dir", "data", "--out", str(table))
with table.open(encoding="utf-8-sig", newline="") as file:
    findings = list(csv.DictReader(file))
suspects = [one for one in findings if one["kind"] == "label"]
for one in suspects[:10]:
    print(one["score"], one["key"], "is", one["label"], "- its neighbours say", one["proposed"])

# %% [markdown]
# Look at them before you decide: on the page (`imagekin serve … --http-address 127.0.0.1:8080`), or in the files. Here the proposals that nine tenths
# of the votes stand behind are accepted. In a program for tables it is the column `decision`.

# %%
for one in suspects:
    if float(one["score"]) >= 0.9:
        one["decision"] = "relabel"
with table.open("w", encoding="utf-8", newline="") as file:
    writer = csv.DictWriter(file, findings[0].keys() if findings else ["decision"])
    writer.writeheader()
    writer.writerows(findings)
decided = [one for one in suspects if one["decision"]]
if decided:
    print(imagekin("review", "clean", "--data-dir", "data", "--apply", str(table)))

# %%
after = imagekin("collection", "evaluate", "clean", "--data-dir", "data")
print(f"{before['accuracy']:.1%} before, {after['accuracy']:.1%} after {len(decided)} corrections")

# %% [markdown]
# Every correction can be taken back:

# %%
if decided:
    print(imagekin("review", "clean", "--data-dir", "data", "--undo", f"{table}.undo.jsonl"))
