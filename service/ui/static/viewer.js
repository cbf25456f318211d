// Zoom and pan of one picture, or of two in step. User units are picture pixels; the view is a rectangle of them.
import { svg } from "./common.js";

const MOST = 40; // screen pixels per picture pixel

export class Viewer {
  /** canvases: SVG elements; width, height: of the picture; changed: called after every move. */
  constructor(canvases, width, height, changed) {
    Object.assign(this, { canvases, width, height, changed });
    this.pointers = new Map();
    this.images = canvases.map((canvas) => {
      const image = svg("image", { width, height, preserveAspectRatio: "none" });
      canvas.append(image);
      canvas.addEventListener("wheel", (event) => this.#wheel(event), { passive: false });
      canvas.addEventListener("pointerdown", (event) => this.#down(event));
      canvas.addEventListener("pointermove", (event) => this.#move(event));
      for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.pointers.delete(event.pointerId));
      return image;
    });
    // What another tool does with a pointer; it returns true when the pointer is its own.
    this.claim = () => false;
    new ResizeObserver(() => this.#resized()).observe(canvases[0]);
    this.fit();
  }

  #size() {
    const box = this.canvases[0].getBoundingClientRect();
    return [Math.max(1, box.width), Math.max(1, box.height)];
  }

  get fitting() {
    const [w, h] = this.#size();
    return Math.min(w / this.width, h / this.height);
  }

  fit() {
    this.whole = true;
    this.scale = this.fitting;
    [this.cx, this.cy] = [this.width / 2, this.height / 2];
    this.#apply();
  }

  #resized() {
    if (this.whole) this.fit();
    else this.#apply();
  }

  /** Zooms by a factor; the picture point (x, y) stays where it is on the screen. */
  zoom(factor, x = this.cx, y = this.cy) {
    const before = this.scale;
    this.scale = Math.min(MOST, Math.max(this.fitting * 0.5, before * factor));
    const kept = before / this.scale;
    this.cx = x + (this.cx - x) * kept;
    this.cy = y + (this.cy - y) * kept;
    this.whole = false;
    this.#apply();
  }

  actual() {
    this.zoom(1 / (devicePixelRatio || 1) / this.scale);
  }

  /** Moves by screen pixels. */
  pan(dx, dy) {
    this.cx -= dx / this.scale;
    this.cy -= dy / this.scale;
    this.whole = false;
    this.#apply();
  }

  /** Moves a box into view. */
  reveal([x1, y1, x2, y2]) {
    const [w, h] = this.#size();
    const [hw, hh] = [w / this.scale / 2, h / this.scale / 2];
    const [x, y] = [(x1 + x2) / 2, (y1 + y2) / 2];
    if (Math.abs(x - this.cx) > hw * 0.9 || Math.abs(y - this.cy) > hh * 0.9) {
      [this.cx, this.cy, this.whole] = [x, y, false];
      this.#apply();
    }
  }

  #apply() {
    const [w, h] = this.#size();
    this.cx = Math.min(this.width, Math.max(0, this.cx));
    this.cy = Math.min(this.height, Math.max(0, this.cy));
    const [vw, vh] = [w / this.scale, h / this.scale];
    for (const canvas of this.canvases) {
      canvas.setAttribute("viewBox", `${this.cx - vw / 2} ${this.cy - vh / 2} ${vw} ${vh}`);
      canvas.classList.toggle("near", this.scale >= 2);
    }
    this.changed?.(this.scale);
  }

  /** Picture coordinates of a pointer. */
  point(event, canvas = this.canvases[0]) {
    const box = canvas.getBoundingClientRect();
    return [
      this.cx + (event.clientX - box.left - box.width / 2) / this.scale,
      this.cy + (event.clientY - box.top - box.height / 2) / this.scale,
    ];
  }

  #wheel(event) {
    event.preventDefault();
    const unit = event.deltaMode === 1 ? 30 : 1;
    this.zoom(Math.exp((-event.deltaY * unit) / 500), ...this.point(event, event.currentTarget));
  }

  #down(event) {
    if (event.pointerType === "mouse" && event.button > 1) return;
    if (this.pointers.size === 0 && event.button === 0 && this.claim(event)) return;
    event.currentTarget.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
  }

  #move(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const others = [...this.pointers].filter(([id]) => id !== event.pointerId);
    this.pointers.set(event.pointerId, [event.clientX, event.clientY]);
    if (others.length === 0) {
      this.pan(event.clientX - before[0], event.clientY - before[1]);
      return;
    }
    const [ox, oy] = others[0][1];
    const distance = (x, y) => Math.max(10, Math.hypot(x - ox, y - oy));
    const middle = { clientX: (event.clientX + ox) / 2, clientY: (event.clientY + oy) / 2 };
    this.zoom(distance(event.clientX, event.clientY) / distance(...before), ...this.point(middle, event.currentTarget));
    this.pan((event.clientX - before[0]) / 2, (event.clientY - before[1]) / 2);
  }
}
