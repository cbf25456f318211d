// What every page uses: words, elements, keys, requests, pictures with boxes. No element is made from text.
const meta = (name) => document.querySelector(`meta[name="${name}"]`)?.content ?? "";
const words = JSON.parse(meta("texts") || "{}");
export const language = document.documentElement.lang;

export function t(key, values = {}) {
  return (words[key] ?? key).replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}

export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  return fill(made, attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

export const icon = (verdict) =>
  svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#i-${verdict}` }));

export const percent = (value, digits = 1) =>
  value === null || value === undefined
    ? "–"
    : value.toLocaleString(language, { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits });
export const number = (value) => value.toLocaleString(language);
// 24 hours and year first, as in the audit trail, in every language: nobody has to guess which is the month.
const two = (n) => String(n).padStart(2, "0");
export const clock = (moment) => [moment.getHours(), moment.getMinutes(), moment.getSeconds()].map(two).join(":");
const date = (moment) => [moment.getFullYear(), two(moment.getMonth() + 1), two(moment.getDate())].join("-");

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return [s, "s"];
  if (s < 5400) return [Math.round(s / 60), "m"];
  return s < 129600 ? [Math.round(s / 3600), "h"] : [Math.round(s / 86400), "d"];
}
export function age(seconds) {
  const [n, unit] = span(seconds);
  return t(`js.age.${unit}`, { n });
}

let noticeTimer = 0;
export function notice(text) {
  const place = document.getElementById("notice");
  place.textContent = text;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => (place.textContent = ""), 6000);
}

/** Sends JSON. Resolves to {ok, content}; never rejects: a lost connection is told like any other failure. */
export async function post(path, content) {
  try {
    const reply = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json", "x-csrf-token": meta("csrf") },
      body: JSON.stringify(content),
    });
    const answer = await reply.json().catch(() => ({ message: `HTTP ${reply.status}` }));
    if (reply.status === 401) answer.message = t("js.login");
    return { ok: reply.ok, content: answer };
  } catch (error) {
    return { ok: false, content: { message: String(error.message ?? error) } };
  }
}

// -- pictures with boxes ----------------------------------------------------------------------------------------

/** The boxes of a result in an SVG whose user units are picture pixels.
 *  scale: screen pixels per picture pixel; line: screen pixels of a line. */
export function drawBoxes(layer, defects, { scale = 1, chosen = -1, labels = true, line = 3 } = {}) {
  layer.replaceChildren();
  // Many names on a small picture would cover it: then the number leads to the list beside it.
  const roomy = defects.length <= 6 || scale >= 1;
  defects.forEach((defect, index) => {
    if (!defect.box) return;
    const [x1, y1, x2, y2] = defect.box;
    const thick = index === chosen ? line * 1.7 : line;
    const frame = { x: x1, y: y1, width: x2 - x1, height: y2 - y1, fill: "none", "vector-effect": "non-scaling-stroke" };
    const group = svg(
      "g",
      { "data-index": index },
      // A dark line below, so that a box shows on every picture.
      svg("rect", { ...frame, stroke: "#000", "stroke-opacity": 0.65, "stroke-width": thick + line }),
      svg("rect", {
        ...frame,
        stroke: defect.color,
        "stroke-width": thick,
        "stroke-dasharray": defect.dash.map((part) => part * thick).join(" ") || null,
      }),
    );
    if (labels) {
      const size = 15 / scale;
      const text = svg("text", {
        x: x1,
        y: y1 > size * 1.4 ? y1 - size * 0.35 : y2 + size * 1.1,
        "font-size": size,
        "font-weight": 700,
        fill: "#fff",
        stroke: "#000",
        "stroke-width": size / 4,
        "paint-order": "stroke",
        "stroke-linejoin": "round",
      });
      text.textContent = roomy || index === chosen ? `${index + 1} ${defect.title}` : String(index + 1);
      group.append(text);
    }
    layer.append(group);
  });
}

// -- keys ------------------------------------------------------------------------------------------------------

const handlers = [];
/** handler(event, key) returns true when the key was its own. Not called while someone types. */
export function onKey(handler) {
  handlers.push(handler);
}

export function typing(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target.isContentEditable || target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement) return true;
  return target instanceof HTMLInputElement && !["radio", "checkbox", "button", "submit"].includes(target.type);
}

const PLACES = { l: "/", r: "/review", h: "/history", c: "/recipes", t: "/training-set", e: "/engine", a: "/audit" };
let leader = 0;

document.addEventListener("keydown", (event) => {
  const help = document.getElementById("help");
  if (event.isComposing || help?.open || event.altKey || event.metaKey) return;
  if (typing(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (leader && performance.now() - leader < 1500 && PLACES[event.key] && !event.ctrlKey) {
    event.preventDefault();
    location.assign(PLACES[event.key]);
    return;
  }
  leader = event.key === "g" && !event.ctrlKey ? performance.now() : 0;
  if (leader) return;
  if (event.key === "?") {
    event.preventDefault();
    help?.showModal();
    return;
  }
  for (const handler of handlers) {
    if (handler(event, event.key)) {
      event.preventDefault();
      return;
    }
  }
});
document.getElementById("help-button")?.addEventListener("click", () => document.getElementById("help").showModal());

// Times of the server in the zone of the person who looks.
for (const place of document.querySelectorAll("time[datetime]")) {
  const moment = new Date(place.dateTime);
  if (!Number.isNaN(moment.getTime())) {
    place.title = place.dateTime;
    place.textContent = `${date(moment)} ${clock(moment)}`;
  }
}
