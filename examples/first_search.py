# %% [markdown]
# # First search
#
# Index a folder of photos and ask it, without a server. `photos` has a folder for each class.

# %%
import subprocess
import sys
from pathlib import Path

from imagekin import Client, Item

photos, model = Path("photos"), Path("model.onnx")
if not model.exists():  # an encoder that has learned from a million photos; its weights came with [train]
    subprocess.run([sys.executable, "-m", "imagekin", "adopt", "efficientnet-lite0", "--out", str(model)], check=True)

# %% [markdown]
# A client of a folder has the methods of a client of a server. The path of a photo becomes its key, its folder its label.

# %%
client = Client.local("data", model=model)
client.create_collection("first", thumbnail_size=160)
files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
items = [Item(str(path.relative_to(photos)), image=path, label=path.parent.name) for path in files]
written = client.upsert("first", items)
print(len(written.outcomes), "photos of", len(client.facet("first", "label")), "classes")

# %% [markdown]
# Ask by a picture. The photo itself is in the collection, so it is its own nearest neighbour.

# %%
for neighbour in client.search(files[0], k=4, collection="first")[0]:
    print(f"{neighbour.similarity:.3f}  {neighbour.label}  {neighbour.key}")

# %% [markdown]
# Ask by an item, by several examples, or among some items only.

# %%
from imagekin import Examples

key, other = items[0].key, items[-1].key
print([one.key for one in client.search(keys=[key], k=3, collection="first")[0]])
like = Examples(positive_keys=[key], negative_keys=[other])
print([one.key for one in client.search(examples=like, k=3, collection="first")[0]])
label = items[-1].label
print([one.key for one in client.search(keys=[key], k=3, collection="first", filter=f'label = "{label}"')[0]])

# %% [markdown]
# What is it? The nearest neighbours vote; `None` is "unknown".

# %%
prediction = client.classify(files[-1], collection="first", min_similarity=0.5)[0]
print(prediction.label, f"{prediction.confidence:.2f}", prediction.votes[:3])
client.drop_collection("first")
client.close()
