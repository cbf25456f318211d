// The recipe form, and what its thresholds would do to stored results.
import { el, language, notice, number, percent, post, svg, t } from "./common.js";

const form = document.getElementById("recipe");
const recipe = JSON.parse(form.dataset.recipe);
const mayChange = Boolean(form.dataset.mayChange);
const NAMES = ["ok_below", "ng_above", "defect_confidence"];
const rows = document.getElementById("labels");
let days = 30;
let asked = 0;
let timer = 0;

if (!mayChange) {
  for (const field of form.querySelectorAll("input, select")) if (!NAMES.includes(field.name) && !field.dataset.for) field.disabled = true;
}

function thresholds() {
  return Object.fromEntries(NAMES.map((name) => [name, form.elements[name].valueAsNumber]));
}

function later() {
  clearTimeout(timer);
  timer = setTimeout(effect, 120);
}

async function effect() {
  const tried = thresholds();
  const problem = document.getElementById("threshold-problem");
  const wrong = NAMES.some((name) => !(tried[name] >= 0 && tried[name] <= 1)) || tried.ok_below > tried.ng_above;
  problem.hidden = !wrong;
  problem.textContent = wrong ? t("js.order") : "";
  if (wrong) return;
  asked += 1;
  const mine = asked;
  const query = new URLSearchParams({ ...tried, days });
  let found;
  try {
    const reply = await fetch(`/api/recipes/${encodeURIComponent(recipe.id)}/effect?${query}`);
    found = await reply.json();
    if (!reply.ok) throw new Error(found.message);
  } catch (error) {
    document.getElementById("basis").textContent = String(error.message ?? error);
    return;
  }
  if (mine === asked) show(found, tried);
}

function rate(share) {
  if (!share.total) return [t("js.none_reviewed")];
  const detail = `${number(share.count)} / ${number(share.total)}; ${t("js.uncertain", { low: percent(share.low), high: percent(share.high) })}`;
  return [el("b", {}, percent(share.value)), el("span", { class: "hint" }, detail)];
}

function show(found, tried) {
  for (const row of document.querySelectorAll("[data-rate]")) {
    for (const which of ["now", "tried"]) {
      const from = found[which];
      const shown = row.dataset.rate === "counts"
        ? [["OK", "REVIEW", "NG"].map((verdict) => number(from.counts[verdict])).join(" / ")]
        : rate(from[row.dataset.rate]);
      row.querySelector(`.${which}`).replaceChildren(...shown);
    }
  }
  const basis = t("js.basis", { results: number(found.results), ok: number(found.reviewed.OK), ng: number(found.reviewed.NG), engine: found.engine.slice(0, 12) || "–", errors: number(found.errors) });
  document.getElementById("basis").textContent = found.truncated ? `${basis} ${t("js.basis.truncated")}` : basis;
  for (const row of rows.querySelectorAll("tr")) {
    const counts = found.boxes[row.querySelector("[name='label.name']").value];
    row.querySelector(".hidden-boxes").textContent = counts ? t("js.hidden", { n: number(counts[0]), of: number(counts[1]) }) : "–";
  }
  histogram(found.histogram, tried);
}

function histogram(h, tried) {
  const chart = document.getElementById("histogram");
  const [W, H] = [600, 190];
  chart.setAttribute("viewBox", `0 0 ${W} ${H + 24}`);
  chart.replaceChildren();
  const bins = h.ok.length;
  const most = Math.max(1, ...h.ok.map((_, i) => h.ok[i] + h.ng[i] + h.unknown[i]));
  // Roots: the few parts between the thresholds show beside the many that are clear.
  const high = (n) => (H - 12) * Math.sqrt(n / most);
  chart.append(svg("rect", { x: tried.ok_below * W, y: 0, width: Math.max(0, tried.ng_above - tried.ok_below) * W, height: H, fill: "#f0c419", "fill-opacity": 0.3 }));
  for (let i = 0; i < bins; i += 1) {
    let sum = 0;
    for (const [name, color] of [["ng", "#b03a00"], ["ok", "#006e56"], ["unknown", "#aab4bd"]]) {
      const [low, top] = [high(sum), high(sum + h[name][i])];
      sum += h[name][i];
      if (top > low) chart.append(svg("rect", { x: (i * W) / bins + 1, y: H - top, width: W / bins - 2, height: top - low, fill: color }));
    }
  }
  for (const [value, key] of [[tried.ok_below, "OK"], [tried.ng_above, "NG"]]) {
    chart.append(svg("line", { x1: value * W, x2: value * W, y1: 0, y2: H, stroke: "#14202b", "stroke-width": 2.5, "stroke-dasharray": key === "OK" ? "6 4" : null }));
  }
  for (let i = 0; i <= 4; i += 1) {
    const text = svg("text", { x: (i * W) / 4, y: H + 18, "font-size": 14, fill: "#14202b", "text-anchor": ["start", "middle", "middle", "middle", "end"][i] });
    text.textContent = (i / 4).toLocaleString(language) + (i === 4 ? "  P(NG)" : "");
    chart.append(text);
  }
  chart.append(svg("line", { x1: 0, x2: W, y1: H, y2: H, stroke: "#14202b" }));
}

for (const slider of form.querySelectorAll("[data-for]")) {
  const field = form.elements[slider.dataset.for];
  slider.addEventListener("input", () => {
    field.value = slider.value;
    // The thresholds push each other: OK is never above NG.
    const { ok_below: ok, ng_above: ng } = thresholds();
    if (slider.dataset.for === "ok_below" && ok > ng) set("ng_above", ok);
    if (slider.dataset.for === "ng_above" && ng < ok) set("ok_below", ng);
    later();
  });
  field.addEventListener("input", () => {
    slider.value = field.value;
    later();
  });
}

function set(name, value) {
  form.elements[name].value = value;
  form.querySelector(`[data-for="${name}"]`).value = value;
}

for (const choice of document.querySelectorAll("[data-days]")) {
  choice.addEventListener("click", () => {
    days = Number(choice.dataset.days);
    for (const each of document.querySelectorAll("[data-days]")) each.setAttribute("aria-pressed", String(each === choice));
    effect();
  });
}

// -- changing --------------------------------------------------------------------------------------------------

function wire(row) {
  row.querySelector(".remove")?.addEventListener("click", () => row.remove());
}
for (const row of rows.querySelectorAll("tr")) wire(row);
function addLabel(label) {
  const row = document.getElementById("new-label").content.cloneNode(true).querySelector("tr");
  rows.append(row);
  if (label) fillLabel(row, label);
  wire(row);
  return row;
}
document.getElementById("add-label")?.addEventListener("click", () => addLabel().querySelector("input").focus());

function fillLabel(row, label) {
  const field = (name) => row.querySelector(`[name="label.${name}"]`);
  field("name").value = label.name;
  field("name").readOnly = true;
  field("severity").value = label.severity;
  field("min_confidence").value = label.min_confidence ?? "";
  for (const code of ["en", "de", "zh"]) field(`title.${code}`).value = label.title[code] ?? "";
}

function readForm() {
  const f = form.elements;
  const whole = (name) => (f[name].value === "" ? null : f[name].valueAsNumber);
  const labels = [...rows.querySelectorAll("tr")].map((row) => {
    const field = (name) => row.querySelector(`[name="label.${name}"]`).value.trim();
    const known = recipe.labels.find((label) => label.name === field("name"));
    const title = { ...known?.title };
    for (const code of ["en", "de", "zh"]) {
      if (field(`title.${code}`)) title[code] = field(`title.${code}`);
      else delete title[code];
    }
    return { name: field("name"), severity: field("severity"), min_confidence: field("min_confidence") === "" ? null : Number(field("min_confidence")), title };
  });
  return {
    ...recipe,
    title: f.title.value,
    labels,
    thresholds: thresholds(),
    golden_reference: f.golden_reference.value,
    reference_shift_px: whole("reference_shift_px"),
    tiling: { mode: f["tiling.mode"].value, size_px: whole("tiling.size_px"), overlap_px: whole("tiling.overlap_px"), max_views: whole("tiling.max_views"), mirrored: f["tiling.mirrored"].checked },
    max_defects_per_view: whole("max_defects_per_view"),
    merge_iou: whole("merge_iou"),
  };
}

for (const restore of document.querySelectorAll(".restore")) {
  restore.addEventListener("click", () => {
    const old = JSON.parse(restore.dataset.recipe);
    for (const name of NAMES) set(name, old.thresholds[name]);
    rows.replaceChildren();
    for (const label of old.labels) addLabel(label);
    const f = form.elements;
    for (const name of ["title", "golden_reference", "reference_shift_px", "max_defects_per_view", "merge_iou"]) f[name].value = old[name];
    for (const name of ["mode", "size_px", "overlap_px", "max_views"]) f[`tiling.${name}`].value = old.tiling[name] ?? "";
    f["tiling.mirrored"].checked = old.tiling.mirrored;
    scrollTo({ top: 0 });
    effect();
  });
}

let saving = false;
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (!mayChange || saving) return;
  saving = true;
  const problem = document.getElementById("problem");
  problem.hidden = true;
  const { ok, content } = await post(`/api/recipes/${encodeURIComponent(recipe.id)}`, {
    recipe: readForm(),
    expectedVersion: Number(form.dataset.stored),
    why: form.elements.why.value,
    person: form.elements.person.value,
  });
  saving = false;
  if (ok) {
    if (content.version === recipe.version) return notice(t("js.unchanged"));
    sessionStorage.setItem("notice", t("js.version", { n: content.version }));
    location.reload();
    return;
  }
  problem.textContent = t("js.failed", { message: [content.field, content.message, content.remedy].filter(Boolean).join(" ") });
  problem.hidden = false;
});

const told = sessionStorage.getItem("notice");
if (told) {
  sessionStorage.removeItem("notice");
  notice(told);
}
effect();
