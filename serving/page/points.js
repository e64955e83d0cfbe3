// Draw the points of a map: with WebGL 2, or where there is none pixel by pixel. Positions are 0 to SIDE in both directions.

export const SIDE = 65_534;
const MOST_DPR = 2;
// Points that are drawn while the map moves.
const SOME = 40_000;

const VERTEX = `#version 300 es
in vec4 point;
uniform vec4 view; uniform float size; uniform int pass; uniform sampler2D colours;
out vec4 colour;
void main() {
  vec4 found = texelFetch(colours, ivec2(int(point.z), 0), 0);
  colour = vec4(found.rgb, pass == 0 ? 0.16 : 0.9);
  bool drawn = point.x <= ${SIDE}.0 && (pass == 2 || (found.a > 0.5) == (pass == 1));
  gl_Position = drawn ? vec4((point.xy - view.xy) * view.zw, 0.0, 1.0) : vec4(2.0, 2.0, 2.0, 1.0);
  gl_PointSize = size;
}`;
const FRAGMENT = `#version 300 es
precision highp float;
in vec4 colour; uniform float size; out vec4 shown;
void main() {
  float edge = size < 4.0 ? 1.0 : 1.0 - smoothstep(0.5 - 1.2 / size, 0.5, length(gl_PointCoord - 0.5));
  shown = vec4(colour.rgb, 1.0) * colour.a * edge;
}`;

/** Return a renderer for a canvas: `set(positions, codes)`, `draw({x, y, scale}, size, colours, dims, quick)`, `close()`. */
export function renderer(canvas) {
  const gl = canvas.getContext("webgl2", { antialias: false, premultipliedAlpha: true, powerPreference: "low-power" });
  return gl ? onGl(canvas, gl) : onPixels(canvas);
}

/** Give a canvas as many pixels as its place on the screen has; returns how many a CSS pixel has. */
function fit(canvas) {
  const ratio = Math.min(MOST_DPR, devicePixelRatio || 1);
  const [width, height] = [Math.max(1, Math.round(canvas.clientWidth * ratio)), Math.max(1, Math.round(canvas.clientHeight * ratio))];
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return ratio;
}

function onGl(canvas, gl) {
  let data = null;
  let made = null;
  let last = null;

  function make() {
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    gl.useProgram(program);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.NEAREST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    const uniforms = Object.fromEntries(["view", "size", "pass"].map((name) => [name, gl.getUniformLocation(program, name)]));
    made = { program, uniforms };
    if (data) upload();
  }

  /** Hand the points over, all of them and one in so many: eight bytes each, which is how graphics processors like them. */
  function upload() {
    for (const [name, step] of Object.entries({ all: 1, some: Math.ceil(data.codes.length / SOME) })) {
      const count = Math.floor(data.codes.length / step);
      const packed = new Uint16Array(4 * count);
      for (let at = 0; at < count; at += 1) {
        packed[4 * at] = data.positions[2 * at * step];
        packed[4 * at + 1] = data.positions[2 * at * step + 1];
        packed[4 * at + 2] = data.codes[at * step];
      }
      const known = (made[name] ??= { array: gl.createVertexArray(), buffer: gl.createBuffer() });
      known.count = count;
      gl.bindVertexArray(known.array);
      gl.bindBuffer(gl.ARRAY_BUFFER, known.buffer);
      gl.bufferData(gl.ARRAY_BUFFER, packed, gl.STATIC_DRAW);
      const place = gl.getAttribLocation(made.program, "point");
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, 4, gl.UNSIGNED_SHORT, false, 0, 0);
    }
  }

  function draw(camera, size, colours, dims, quick = false) {
    last = [camera, size, colours, dims];
    if (!made || !data) return;
    const ratio = fit(canvas);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, colours);
    const scale = 2 * camera.scale * ratio;
    gl.uniform4f(made.uniforms.view, camera.x, camera.y, scale / canvas.width, scale / canvas.height);
    gl.uniform1f(made.uniforms.size, size * ratio);
    const { array, count } = quick ? made.some : made.all;
    gl.bindVertexArray(array);
    // What is not chosen lies below what is.
    for (const pass of dims ? [0, 1] : [2]) {
      gl.uniform1i(made.uniforms.pass, pass);
      gl.drawArrays(gl.POINTS, 0, count);
    }
  }

  canvas.addEventListener("webglcontextlost", (event) => (event.preventDefault(), (made = null)));
  canvas.addEventListener("webglcontextrestored", () => (make(), last && draw(...last)));
  make();
  return {
    set(positions, codes) {
      data = { positions, codes };
      if (made) upload();
    },
    draw,
    close: () => gl.getExtension("WEBGL_lose_context")?.loseContext(),
  };
}

function onPixels(canvas) {
  const context = canvas.getContext("2d");
  let data = null;
  return {
    set: (positions, codes) => (data = { positions, codes }),
    draw(camera, size, colours, dims, quick = false) {
      if (!data) return;
      const step = quick ? Math.ceil(data.codes.length / SOME) : 1;
      const ratio = fit(canvas);
      const { width, height } = canvas;
      const image = context.createImageData(width, height);
      const pixels = new Uint32Array(image.data.buffer);
      const scale = camera.scale * ratio;
      const side = Math.max(1, Math.round(size * ratio * 0.8));
      for (const pass of dims ? [0, 1] : [2]) {
        for (let at = 0; at < data.codes.length; at += step) {
          const code = 4 * data.codes[at];
          if (pass !== 2 && (colours[code + 3] > 127) !== (pass === 1)) continue;
          const left = Math.round(width / 2 + (data.positions[2 * at] - camera.x) * scale - side / 2);
          const top = Math.round(height / 2 - (data.positions[2 * at + 1] - camera.y) * scale - side / 2);
          if (left < 0 || top < 0 || left + side > width || top + side > height || data.positions[2 * at] > SIDE) continue;
          const colour = ((pass === 0 ? 40 : 230) << 24) | (colours[code + 2] << 16) | (colours[code + 1] << 8) | colours[code];
          for (let y = top; y < top + side; y += 1) pixels.fill(colour, y * width + left, y * width + left + side);
        }
      }
      context.putImageData(image, 0, 0);
    },
    close() {},
  };
}

/** Find points by their place: the map is cut into cells, and a cell knows its points. */
export class Cells {
  static #PER_SIDE = 256;

  constructor(positions) {
    this.positions = positions;
    const count = positions.length / 2;
    const starts = (this.starts = new Uint32Array(Cells.#PER_SIDE ** 2 + 1));
    for (let at = 0; at < count; at += 1) starts[this.#cell(at) + 1] += 1;
    for (let cell = 0; cell < starts.length - 1; cell += 1) starts[cell + 1] += starts[cell];
    const next = starts.slice();
    this.order = new Uint32Array(count);
    for (let at = 0; at < count; at += 1) this.order[next[this.#cell(at)]++] = at;
  }

  #cell = (at) => (this.positions[2 * at + 1] >> 8) * Cells.#PER_SIDE + (this.positions[2 * at] >> 8);

  /** Call a function with the number of every point in a rectangle's cells. */
  #each([left, bottom, right, top], call) {
    const clamp = (value) => Math.max(0, Math.min(Cells.#PER_SIDE - 1, Math.floor(value) >> 8));
    for (let row = clamp(bottom); row <= clamp(top); row += 1) {
      const line = row * Cells.#PER_SIDE;
      for (let at = this.starts[line + clamp(left)]; at < this.starts[line + clamp(right) + 1]; at += 1) {
        if (this.positions[2 * this.order[at]] <= SIDE) call(this.order[at]);
      }
    }
  }

  /**
   * Return the number of the point that is nearest to a place, -1 for none within a distance; `allows` may refuse some.
   * @param {number} x
   * @param {number} y
   * @param {number} within
   * @param {(number: number) => boolean} [allows]
   */
  nearest(x, y, within, allows = () => true) {
    let [found, least] = [-1, within * within];
    this.#each([x - within, y - within, x + within, y + within], (at) => {
      const distance = (this.positions[2 * at] - x) ** 2 + (this.positions[2 * at + 1] - y) ** 2;
      if (distance <= least && allows(at)) [found, least] = [at, distance];
    });
    return found;
  }

  /** Return the numbers of the points within a polygon [x, y, x, y, …], in ascending order. */
  inside(polygon) {
    const corners = polygon.length / 2;
    const xs = Array.from({ length: corners }, (_, at) => polygon[2 * at]);
    const ys = Array.from({ length: corners }, (_, at) => polygon[2 * at + 1]);
    const found = [];
    this.#each([Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)], (at) => {
      const [x, y] = [this.positions[2 * at], this.positions[2 * at + 1]];
      let within = false;
      for (let one = 0, other = corners - 1; one < corners; other = one, one += 1) {
        if (ys[one] > y !== ys[other] > y && x < ((xs[other] - xs[one]) * (y - ys[one])) / (ys[other] - ys[one]) + xs[one]) within = !within;
      }
      if (within) found.push(at);
    });
    return Uint32Array.from(found).sort();
  }
}
