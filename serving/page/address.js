// Keep the state in the address bar: `#search?collection=shop&key=…`, so that back, reload and sharing work.

/** Return the view and its parameters. */
export function read() {
  const [view, query = ""] = location.hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  return { view: view || "search", params: new URLSearchParams(query) };
}

/**
 * Change the address; null removes a parameter. `replace` leaves no step to go back to.
 * @param {Record<string, any>} changes
 * @param {{view?: string, replace?: boolean, fresh?: boolean}} [options]
 */
export function go(changes, { view, replace = false, fresh = false } = {}) {
  const now = read();
  const params = fresh ? new URLSearchParams() : now.params;
  for (const [name, value] of Object.entries(changes)) {
    params.delete(name);
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") params.append(name, one);
    }
  }
  const hash = `#${view ?? now.view}?${params}`;
  if (hash === location.hash) return;
  history[replace ? "replaceState" : "pushState"](null, "", hash);
  dispatchEvent(new HashChangeEvent("hashchange"));
}

/** Add a value to a parameter that may have several, or remove it. */
export function toggle(name, value, on, options) {
  const others = read().params.getAll(name).filter((one) => one !== value);
  go({ [name]: on ? [...others, value] : others }, options);
}
