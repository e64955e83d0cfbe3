// Pictures that were dropped, pasted or chosen, and their embeddings; they stay in this tab's memory.

import { call } from "./api.js";

const MOST_PICTURES = 40;
const held = new Map();
let next = 1;

/** Hold pictures and return their ids. */
export function hold(files) {
  return [...files].map((file) => {
    const id = String(next++);
    held.set(id, { file, url: URL.createObjectURL(file), vectors: new Map() });
    if (held.size > MOST_PICTURES) {
      const [oldest, picture] = held.entries().next().value;
      URL.revokeObjectURL(picture.url);
      held.delete(oldest);
    }
    return id;
  });
}

/** Return a picture's `file` and `url`, undefined after a reload of the page. */
export const picture = (id) => held.get(id);

/** Return a picture's embedding by a model, in base64; it is made once. */
export function embedding(id, model, signal) {
  const { file, vectors } = held.get(id);
  if (!vectors.has(model)) {
    const made = call("POST", "v1/embed", {
      params: { model, vectors: "base64" }, body: file, type: file.type || "application/octet-stream", signal, read: true,
    }).then((answer) => answer.results[0].vector);
    made.catch(() => vectors.delete(model));
    vectors.set(model, made);
  }
  return vectors.get(model);
}

/** Return the pictures of a drop or a paste. */
export function picturesOf(transfer) {
  return [...(transfer?.files ?? [])].filter((file) => file.type.startsWith("image/") || !file.type);
}
