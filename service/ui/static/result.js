// One result: pictures, defects, and a person's decision.
import { notice, onKey, percent, post, svg, t } from "./common.js";
import { Editor } from "./editor.js";
import { Viewer } from "./viewer.js";

const bench = document.getElementById("workbench");
const given = JSON.parse(bench.dataset.editor);
const editable = Boolean(bench.dataset.mayReview);
const frame = document.getElementById("frame");
const golden = document.getElementById("golden");
const form = document.getElementById("review");
const button = (name) => document.querySelector(`[data-do="${name}"]`);

let editor;
let viewer = null;
let marks = null;
let other = null;
let saving = false;
let sent = false;

if (frame) {
  viewer = new Viewer(golden ? [frame, golden] : [frame], given.width || 1, given.height || 1, (scale) => {
    document.getElementById("zoom").textContent = percent(scale * (devicePixelRatio || 1), 0);
    editor?.redraw();
  });
  viewer.images[0].setAttribute("href", `/picture/${given.image}`);
  if (golden) {
    viewer.images[1].setAttribute("href", `/picture/${given.reference}`);
    // For the comparison by blinking: the golden sample in the place of the frame.
    other = svg("image", { href: `/picture/${given.reference}`, width: given.width, height: given.height, preserveAspectRatio: "none", visibility: "hidden" });
    frame.append(other);
  }
  marks = svg("g", { class: "marks" });
  frame.append(marks);
}

editor = new Editor({ viewer, canvas: frame, marks, list: document.getElementById("defects"), given, editable: editable && Boolean(frame), changed: sync });

function sync() {
  if (!editor) return;
  const undo = button("undo");
  if (undo) undo.disabled = editor.past.length === 0;
  button("draw")?.setAttribute("aria-pressed", String(editor.drawing));
  if (form) {
    const note = document.getElementById("ok-note");
    note.hidden = form.elements.verdict.value !== "OK" || editor.defects.length === 0;
    note.textContent = t("js.ok_drops", { n: editor.defects.length });
  }
}

// -- view ------------------------------------------------------------------------------------------------------

let blinking = 0;
function blink(on) {
  clearInterval(blinking);
  blinking = 0;
  other.setAttribute("visibility", "hidden");
  if (on) {
    const toggle = () => other.setAttribute("visibility", other.getAttribute("visibility") === "hidden" ? "visible" : "hidden");
    toggle();
    // Slow enough for WCAG 2.3.1 (three flashes a second), and under the person's control.
    blinking = setInterval(toggle, 700);
  }
  button("blink").setAttribute("aria-pressed", String(on));
}

const DO = {
  in: () => viewer?.zoom(1.4),
  out: () => viewer?.zoom(1 / 1.4),
  fit: () => viewer?.fit(),
  actual: () => viewer?.actual(),
  boxes: () => {
    const hidden = bench.classList.toggle("hide-boxes");
    button("boxes").setAttribute("aria-pressed", String(!hidden));
  },
  golden: () => {
    const pane = document.getElementById("golden-pane");
    if (!pane) return;
    pane.hidden = !pane.hidden;
    button("golden").setAttribute("aria-pressed", String(!pane.hidden));
  },
  blink: () => other && blink(!blinking),
  draw: () => {
    if (!editor.editable) return;
    editor.draw(!editor.drawing);
    if (editor.drawing) notice(t("js.draw.on"));
  },
  add: () => {
    if (!editor.editable) return;
    editor.add();
    frame.focus();
  },
  undo: () => editor.undo(),
};
for (const [name, act] of Object.entries(DO)) button(name)?.addEventListener("click", act);

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const KEYS = { "+": DO.in, "=": DO.in, "-": DO.out, "−": DO.out, 0: DO.fit, b: DO.boxes, m: DO.golden, c: DO.blink };
const EDIT = { d: DO.draw, a: DO.add, "[": () => editor.step(-1), "]": () => editor.step(1) };

onKey((event, key) => {
  if (event.ctrlKey && key === "z" && editable) return DO.undo(), true;
  const arrow = ARROWS[key];
  const radio = event.target instanceof HTMLInputElement && event.target.type === "radio";
  if (arrow && !radio) {
    const step = event.ctrlKey ? 10 : 1;
    if (editable && editor.chosen >= 0 && editor.nudge(arrow[0] * step, arrow[1] * step, event.shiftKey)) return true;
    if (event.target === frame || event.target === golden) return viewer.pan(-arrow[0] * 60, -arrow[1] * 60), true;
    return false;
  }
  if (event.ctrlKey) return false;
  if (key === "Escape") {
    editor.draw(false);
    if (blinking) blink(false);
    editor.choose(-1);
    return true;
  }
  if (editable) {
    if (/^[1-9]$/.test(key) && editor.chosen >= 0) {
      const label = given.labels[Number(key) - 1];
      if (label) editor.label(editor.chosen, label.name);
      return true;
    }
    if (key === "Delete" || key === "Backspace") return editor.remove(), true;
    if (EDIT[key]) return EDIT[key](), true;
    const verdict = { o: "OK", n: "NG", v: "REVIEW" }[key];
    const choice = verdict && form?.querySelector(`input[value="${verdict}"]`);
    if (choice) {
      choice.checked = true;
      choice.focus();
      sync();
      return true;
    }
    if (key === "Enter" && form && !["BUTTON", "A", "SUMMARY"].includes(event.target.tagName)) {
      form.requestSubmit();
      return true;
    }
    if (key === "s" && bench.dataset.skip) return location.assign(bench.dataset.skip), true;
  }
  if (key === "9") return DO.actual(), true;
  if (KEYS[key]) return KEYS[key](), true;
  const neighbour = { j: "older", k: "newer" }[key];
  const link = neighbour && document.getElementById(neighbour);
  if (link) return location.assign(link.href), true;
  return false;
});

// -- decision --------------------------------------------------------------------------------------------------

if (form) {
  const skip = document.getElementById("skip");
  if (skip) skip.href = bench.dataset.skip;
  form.addEventListener("change", sync);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (saving) return;
    saving = true;
    document.getElementById("save").disabled = true;
    const problem = document.getElementById("problem");
    problem.hidden = true;
    const { ok, content } = await post(`/api/results/${given.id}/review`, {
      verdict: form.elements.verdict.value,
      reason: form.elements.reason.value,
      person: form.elements.person.value,
      defects: editor.correction,
      reviewNumber: given.reviewNumber,
    });
    if (ok) {
      sent = true;
      location.assign(bench.dataset.next || location.pathname);
      return;
    }
    saving = false;
    document.getElementById("save").disabled = false;
    problem.textContent = t("js.failed", { message: [content.message, content.remedy].filter(Boolean).join(" ") });
    problem.hidden = false;
    const field = form.elements[content.field];
    if (field instanceof HTMLInputElement) field.focus();
  });
  addEventListener("beforeunload", (event) => {
    if (editor.dirty && !sent) event.preventDefault();
  });
}
sync();
