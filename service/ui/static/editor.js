// The list of defects, changed with the pointer or with keys alone. Boxes are [x1, y1, x2, y2] in picture pixels.
import { drawBoxes, el, svg, t } from "./common.js";

const LEAST = 2; // picture pixels
const HANDLES = [["x1", "y1"], ["x2", "y1"], ["x1", "y2"], ["x2", "y2"]];
const AT = { x1: 0, y1: 1, x2: 2, y2: 3 };

export class Editor {
  constructor({ viewer, canvas, marks, list, given, editable, changed }) {
    Object.assign(this, { viewer, canvas, marks, list, editable, changed });
    this.labels = new Map(given.labels.map((label) => [label.name, label]));
    [this.width, this.height] = [given.width, given.height];
    this.defects = structuredClone(given.defects);
    this.original = JSON.stringify(this.defects);
    this.past = [];
    this.chosen = -1;
    this.drawing = false;
    this.drag = null;
    this.lastLabel = this.defects[0]?.label ?? given.labels[0]?.name ?? "defect";
    if (canvas && editable) {
      viewer.claim = (event) => this.#claim(event);
      canvas.addEventListener("pointermove", (event) => this.#dragged(event));
      canvas.addEventListener("pointerup", (event) => this.#dropped(event));
      canvas.addEventListener("pointercancel", () => this.#cancelled());
    }
    this.redraw();
  }

  get dirty() {
    return JSON.stringify(this.defects) !== this.original;
  }

  /** What the server gets; null when nothing was changed. */
  get correction() {
    if (!this.dirty) return null;
    return this.defects.map(({ label, severity, confidence, box }) => ({ label, severity, confidence, box }));
  }

  #keep() {
    this.past.push(JSON.stringify(this.defects));
    if (this.past.length > 200) this.past.shift();
  }

  undo() {
    if (!this.past.length) return;
    this.defects = JSON.parse(this.past.pop());
    this.chosen = Math.min(this.chosen, this.defects.length - 1);
    this.redraw();
  }

  #styled(label) {
    const known = this.labels.get(label);
    return { label, title: known?.title ?? label, severity: known?.severity ?? "major", color: known?.color ?? "#d55e00", dash: known?.dash ?? [] };
  }

  choose(index, focus = false) {
    this.chosen = index;
    this.redraw();
    const box = this.defects[index]?.box;
    if (box) this.viewer?.reveal(box);
    if (focus) this.list.children[index]?.querySelector("button")?.focus();
  }

  step(by) {
    const n = this.defects.length;
    if (n) this.choose(this.chosen < 0 ? (by > 0 ? 0 : n - 1) : (this.chosen + by + n) % n);
  }

  #clip([x1, y1, x2, y2]) {
    const fix = (value, most) => Math.round(Math.min(most, Math.max(0, value)) * 10) / 10;
    return [fix(x1, this.width), fix(y1, this.height), fix(x2, this.width), fix(y2, this.height)];
  }

  /** A box in the middle of what is seen: drawing without a pointer. */
  add(box = null) {
    this.#keep();
    const side = Math.max(8, Math.min(this.width, this.height) / 8 / Math.max(1, this.viewer.scale / this.viewer.fitting));
    const { cx, cy } = this.viewer;
    const made = this.#clip(box ?? [cx - side / 2, cy - side / 2, cx + side / 2, cy + side / 2]);
    // Drawn by a person: certain.
    this.defects.push({ ...this.#styled(this.lastLabel), confidence: 1, box: made });
    this.choose(this.defects.length - 1);
  }

  remove(index = this.chosen) {
    if (!this.defects[index]) return;
    this.#keep();
    this.defects.splice(index, 1);
    this.chosen = Math.min(index, this.defects.length - 1);
    this.redraw();
  }

  label(index, name) {
    if (!this.defects[index] || !this.labels.has(name)) return;
    this.#keep();
    this.lastLabel = name;
    Object.assign(this.defects[index], this.#styled(name), { confidence: 1 });
    this.redraw();
  }

  /** Moves (or resizes, at the lower right corner) the chosen box by picture pixels. */
  nudge(dx, dy, resize) {
    const defect = this.defects[this.chosen];
    if (!defect?.box) return false;
    this.#keep();
    this.#place(defect, resize ? this.#sized(defect.box, dx, dy) : this.#shifted(defect.box, dx, dy));
    this.redraw();
    return true;
  }

  #sized([x1, y1, x2, y2], dx, dy) {
    return [x1, y1, Math.max(x1 + LEAST, x2 + dx), Math.max(y1 + LEAST, y2 + dy)];
  }

  #shifted([x1, y1, x2, y2], dx, dy) {
    const mx = Math.min(this.width - x2, Math.max(-x1, dx));
    const my = Math.min(this.height - y2, Math.max(-y1, dy));
    return [x1 + mx, y1 + my, x2 + mx, y2 + my];
  }

  #place(defect, box) {
    defect.box = this.#clip(box);
    defect.confidence = 1;
  }

  // -- pointer ------------------------------------------------------------------------------------------------

  draw(on) {
    this.drawing = on;
    this.canvas?.classList.toggle("drawing", on);
    this.changed?.();
  }

  #claim(event) {
    if (event.currentTarget !== this.canvas) return false;
    const point = this.viewer.point(event);
    const handle = event.target.dataset?.handle;
    const group = event.target.closest?.("g[data-index]");
    if (this.drawing) this.drag = { kind: "draw", from: point, box: null };
    else if (handle !== undefined) this.drag = { kind: "corner", corner: HANDLES[Number(handle)], from: point };
    else if (group) {
      const index = Number(group.dataset.index);
      this.choose(index);
      this.drag = { kind: "move", from: point, start: this.defects[index].box };
    } else return false;
    this.drag.before = JSON.stringify(this.defects);
    this.canvas.setPointerCapture(event.pointerId);
    return true;
  }

  #dragged(event) {
    if (!this.drag) return;
    const [x, y] = this.viewer.point(event);
    const { kind, from, start, corner } = this.drag;
    if (kind === "draw") {
      this.drag.box = this.#clip([Math.min(from[0], x), Math.min(from[1], y), Math.max(from[0], x), Math.max(from[1], y)]);
    } else if (kind === "move") {
      if (Math.hypot(x - from[0], y - from[1]) * this.viewer.scale < 3 && !this.drag.moved) return;
      this.drag.moved = true;
      this.#place(this.defects[this.chosen], this.#shifted(start, x - from[0], y - from[1]));
    } else {
      this.drag.moved = true;
      const defect = this.defects[this.chosen];
      const box = [...defect.box];
      for (const [name, value] of [[corner[0], x], [corner[1], y]]) box[AT[name]] = value;
      if (corner[0] === "x1") box[0] = Math.min(box[0], box[2] - LEAST);
      else box[2] = Math.max(box[2], box[0] + LEAST);
      if (corner[1] === "y1") box[1] = Math.min(box[1], box[3] - LEAST);
      else box[3] = Math.max(box[3], box[1] + LEAST);
      this.#place(defect, box);
    }
    this.redraw();
  }

  #dropped() {
    const drag = this.drag;
    if (!drag) return;
    this.drag = null;
    if (drag.kind === "draw") {
      this.draw(false);
      const [x1, y1, x2, y2] = drag.box ?? [0, 0, 0, 0];
      if (x2 - x1 >= LEAST && y2 - y1 >= LEAST) this.add(drag.box);
      else this.redraw();
    } else if (drag.moved) {
      this.past.push(drag.before);
      this.redraw();
    }
  }

  #cancelled() {
    if (this.drag) this.defects = JSON.parse(this.drag.before);
    this.drag = null;
    this.redraw();
  }

  // -- showing ------------------------------------------------------------------------------------------------

  redraw() {
    if (this.marks) {
      const scale = this.viewer.scale;
      drawBoxes(this.marks, this.defects, { scale, chosen: this.chosen });
      for (const group of this.editable ? this.marks.querySelectorAll("g[data-index]") : []) {
        // The whole box takes the pointer, not only its line.
        const [x1, y1, x2, y2] = this.defects[Number(group.dataset.index)].box;
        group.prepend(svg("rect", { class: "box", x: x1, y: y1, width: x2 - x1, height: y2 - y1, fill: "transparent" }));
      }
      const box = this.defects[this.chosen]?.box;
      if (box && this.editable) {
        const r = 6.5 / scale;
        HANDLES.forEach(([h, v], index) =>
          this.marks.append(
            svg("rect", { class: "handle", "data-handle": index, x: box[AT[h]] - r, y: box[AT[v]] - r, width: 2 * r, height: 2 * r, "stroke-width": 1.5 }),
          ));
      }
      if (this.drag?.box) {
        const [x1, y1, x2, y2] = this.drag.box;
        this.marks.append(svg("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, fill: "#fff3", stroke: "#fff", "stroke-width": 2, "vector-effect": "non-scaling-stroke" }));
      }
    }
    if (!this.drag) this.#list();
    this.changed?.();
  }

  #list() {
    const focused = [...this.list.children].findIndex((item) => item.contains(document.activeElement));
    const tag = focused >= 0 ? document.activeElement.tagName : "";
    this.list.replaceChildren(
      ...this.defects.map((defect, index) => {
        const pick = el("button", { type: "button", class: "pick", "aria-pressed": index === this.chosen ? "true" : "false", "aria-label": t(defect.box ? "js.box" : "js.box.none", { n: index + 1, label: defect.title }) }, String(index + 1));
        pick.addEventListener("click", () => this.choose(index, true));
        const item = el("li", { class: index === this.chosen ? "chosen" : null }, pick);
        item.style.borderLeftColor = defect.color;
        const facts = el("span", { class: "hint" }, `${t(`severity.${defect.severity}`)} · ${defect.confidence.toFixed(2)}`);
        if (this.editable) {
          const select = el("select", { "aria-label": t("js.label", { n: index + 1 }) });
          for (const label of this.labels.values()) {
            const option = el("option", { value: label.name }, label.title);
            option.selected = label.name === defect.label;
            select.append(option);
          }
          select.addEventListener("change", () => this.label(index, select.value));
          const remove = el("button", { type: "button", class: "plain", title: t("js.delete", { n: index + 1 }), "aria-label": t("js.delete", { n: index + 1 }) }, "✕");
          remove.addEventListener("click", () => this.remove(index));
          item.append(select, facts, remove);
        } else item.append(el("span", {}, defect.title), facts);
        return item;
      }),
    );
    if (focused >= 0) {
      const item = this.list.children[Math.min(focused, this.list.children.length - 1)];
      (item?.querySelector(tag.toLowerCase()) ?? item?.querySelector("button"))?.focus();
    }
    document.getElementById("no-defects").hidden = this.defects.length > 0;
    document.getElementById("defect-count").textContent = this.defects.length ? String(this.defects.length) : "";
  }
}
