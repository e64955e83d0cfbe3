// Move over a map: drag, wheel, two fingers, keys; and draw a lasso. Places are in the map's own units, 0 to SIDE.

import { SIDE } from "./points.js";

const MOST_ZOOM = 400;
const CLICK_PX = 5;
const STEP_PX = 4;
const MOST_CORNERS = 48;

/** What a person looks at: the place in the middle, and how large the map is; 1 shows all of it. */
export class Camera {
  constructor(element, moved) {
    this.element = element;
    this.moved = moved;
    [this.x, this.y, this.zoom] = [SIDE / 2, SIDE / 2, 1];
  }

  /** CSS pixels of a unit of the map. */
  get scale() {
    return (Math.min(this.element.clientWidth, this.element.clientHeight) * this.zoom * 0.97) / SIDE;
  }

  set(x, y, zoom) {
    this.x = Math.max(0, Math.min(SIDE, x));
    this.y = Math.max(0, Math.min(SIDE, y));
    this.zoom = Math.max(0.5, Math.min(MOST_ZOOM, zoom));
    this.moved();
  }

  /** Return the place on the map of a point of the element. */
  at = (left, top) => [this.x + (left - this.element.clientWidth / 2) / this.scale, this.y - (top - this.element.clientHeight / 2) / this.scale];

  /** Return where a place of the map is in the element. */
  to = (x, y) => [this.element.clientWidth / 2 + (x - this.x) * this.scale, this.element.clientHeight / 2 - (y - this.y) * this.scale];

  pan = (right, down) => this.set(this.x + right / this.scale, this.y - down / this.scale, this.zoom);

  /** Zoom, and keep the place under a point of the element where it is. */
  grow(factor, left = this.element.clientWidth / 2, top = this.element.clientHeight / 2) {
    const before = this.at(left, top);
    this.zoom = Math.max(0.5, Math.min(MOST_ZOOM, this.zoom * factor));
    const after = this.at(left, top);
    this.set(this.x + before[0] - after[0], this.y + before[1] - after[1], this.zoom);
  }
}

/** Connect an element with a camera: `lassoing()` tells whether a drag draws, `drawn(corners, done)`, `over(place)`, `clicked(place)` what happened. */
export function handle(element, camera, { lassoing, drawn, over, clicked }) {
  const fingers = new Map();
  let corners = null;
  let travelled = 0;
  const point = (event) => {
    const box = element.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  element.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : 1;
    camera.grow(Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.002)), ...point(event));
  }, { passive: false });
  element.addEventListener("pointerdown", (event) => {
    if (event.button || event.target.closest("button")) return;
    element.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, point(event));
    travelled = 0;
    corners = fingers.size === 1 && (lassoing() || event.shiftKey) ? [point(event)] : null;
    over(null);
  });
  element.addEventListener("pointermove", (event) => {
    const now = point(event);
    const before = fingers.get(event.pointerId);
    if (!before) return over(camera.at(...now));
    const by = [now[0] - before[0], now[1] - before[1]];
    travelled += Math.hypot(...by);
    if (corners) {
      // A browser tells of several moves at once.
      for (const place of [...(event.getCoalescedEvents?.() ?? []).map(point), now]) {
        const last = corners.at(-1);
        if (Math.hypot(place[0] - last[0], place[1] - last[1]) >= STEP_PX) corners.push(place);
      }
      drawn(corners, false);
    } else if (fingers.size === 2) {
      const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
      const [was, is] = [Math.hypot(before[0] - other[0], before[1] - other[1]), Math.hypot(now[0] - other[0], now[1] - other[1])];
      camera.pan(-by[0] / 2, -by[1] / 2);
      if (was > 1 && is > 1) camera.grow(is / was, (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
    } else if (travelled > CLICK_PX) camera.pan(-by[0], -by[1]);
    fingers.set(event.pointerId, now);
  });
  const up = (event) => {
    if (!fingers.delete(event.pointerId)) return;
    const done = corners;
    corners = null;
    if (travelled <= CLICK_PX && event.type === "pointerup") return drawn(null, false), clicked(camera.at(...point(event)));
    if (!done) return;
    const step = Math.ceil(done.length / MOST_CORNERS);
    drawn(done.length < 3 ? null : done.filter((_, at) => at % step === 0), done.length >= 3 && event.type === "pointerup");
  };
  element.addEventListener("pointerup", up);
  element.addEventListener("pointercancel", up);
  element.addEventListener("pointerleave", () => fingers.size || over(null));
}
