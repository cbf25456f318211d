// The wall: one tile a camera, counters, trend. What is not live is never shown as if it were.
import { age, clock, drawBoxes, el, icon, language, number, onKey, percent, span, svg, t } from "./common.js";

const STALE_S = 60;
// Pings come every 10 s: after so long without any event the line is dead, whatever the browser believes.
const SILENT_MS = 25000;

const wall = document.getElementById("cameras");
const lost = document.getElementById("lost");
const start = JSON.parse(wall.dataset.start);
const tiles = new Map();
// Ages are told by the server's clock.
const offset = Date.parse(start.now) - Date.now();
const now = () => Date.now() + offset;
let chosen = null;

const keyOf = (result) => JSON.stringify([result.line, result.station, result.camera]);

function show(result, fresh) {
  const key = keyOf(result);
  let tile = tiles.get(key);
  if (tile && tile.result.seq > result.seq) return;
  if (!tile) {
    tile = { key, node: el("a", { class: "tile" }) };
    tiles.set(key, tile);
    const sorted = [...tiles.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
    wall.insertBefore(tile.node, sorted[sorted.indexOf(tile) + 1]?.node ?? null);
    arrange();
  }
  tile.result = result;
  draw(tile);
  if (fresh) {
    tile.node.classList.remove("fresh");
    void tile.node.offsetWidth; // restarts the animation
    tile.node.classList.add("fresh");
  }
}

function draw(tile) {
  const r = tile.result;
  const camera = r.camera || t("js.no_camera");
  const place = [r.line, r.station].filter(Boolean).join(" · ");
  const counts = new Map();
  for (const defect of r.defects) counts.set(defect.title, (counts.get(defect.title) ?? 0) + 1);
  const found = r.error || [...counts].map(([title, n]) => (n > 1 ? `${n} × ${title}` : title)).join(", ") || r.predictedClass;
  tile.age = el("span", { class: "age" });
  let view = el("span", { class: "view gone" }, t("js.picture_gone"));
  if (r.image && r.width && r.height) {
    const marks = svg("g", { class: "marks" });
    view = svg(
      "svg",
      { class: "view", viewBox: `0 0 ${r.width} ${r.height}`, "aria-hidden": "true" },
      svg("image", { href: `/picture/${r.image}?size=960`, width: r.width, height: r.height, preserveAspectRatio: "none" }),
      marks,
    );
    drawBoxes(marks, r.defects, { labels: false, line: Math.max(3, innerWidth / 640) });
  }
  tile.node.className = `tile v-${r.verdict}${tile.key === chosen ? " chosen" : ""}`;
  tile.node.href = `/results/${r.id}`;
  tile.node.setAttribute("aria-label", [camera, place, t(`verdict.${r.verdict}`), t("js.part", { part: r.part || "–" }), found].filter(Boolean).join(", "));
  tile.node.replaceChildren(
    el("span", { class: "verdict" }, icon(r.verdict), el("span", {}, t(`verdict.${r.verdict}`)),
      el("span", { class: "where" }, camera, place ? el("br") : null, place)),
    view,
    el("span", { class: "about" },
      el("span", { class: "part" }, t("js.part", { part: r.part || "–" })),
      found ? el("span", { class: "found" }, found) : null,
      r.p === null ? null : el("span", {}, `P(NG) ${r.p.toLocaleString(language, { minimumFractionDigits: 3, maximumFractionDigits: 3 })}`),
      r.reviewed ? el("span", {}, t("js.reviewed")) : null,
      r.simulated ? el("span", {}, t("js.simulated")) : null,
      tile.age),
  );
  tick(tile);
}

function tick(tile) {
  const seconds = (now() - Date.parse(tile.result.createdAt)) / 1000;
  const stale = seconds > STALE_S;
  tile.node.classList.toggle("stale", stale);
  const [n, unit] = span(seconds);
  tile.age.textContent = stale ? t("js.stale", { age: `${n} ${{ s: "s", m: "min", h: "h", d: "d" }[unit]}` }) : age(seconds);
}

/** Columns that make the tiles as large as the screen allows. */
function arrange() {
  const n = Math.max(1, tiles.size);
  const { width, height } = wall.getBoundingClientRect();
  let best = [1, 0];
  for (let columns = 1; columns <= n; columns += 1) {
    const w = width / columns;
    const h = Math.max(height, 320) / Math.ceil(n / columns);
    // The picture is roughly square below the banner.
    const size = Math.min(w, h * 1.25);
    if (size > best[1]) best = [columns, size];
  }
  wall.style.setProperty("--columns", best[0]);
  document.getElementById("none").hidden = tiles.size > 0;
}
addEventListener("resize", arrange);

function choose(key) {
  chosen = key;
  wall.classList.toggle("one", key !== null);
  for (const tile of tiles.values()) tile.node.classList.toggle("chosen", tile.key === key);
}

// -- figures ---------------------------------------------------------------------------------------------------

function figures(f) {
  for (const place of document.querySelectorAll("[data-count]")) {
    const n = f.counts[place.dataset.count];
    place.textContent = number(n);
    document.querySelector(`[data-share="${place.dataset.count}"]`).textContent = f.total ? percent(n / f.total) : "";
  }
  document.querySelector("[data-yield]").textContent = percent(f.yield.value);
  document.querySelector("[data-interval]").textContent = f.yield.total
    ? t("js.uncertain", { low: percent(f.yield.low), high: percent(f.yield.high) }) : "";
  document.querySelector("[data-waiting]").textContent = number(f.waiting);
  trend(f.trend);
}

const STACK = ["OK", "REVIEW", "NG", "ERROR"];
function trend(columns) {
  const chart = document.getElementById("trend");
  const width = 100 * columns.length;
  const most = Math.max(1, ...columns.map((c) => STACK.reduce((sum, v) => sum + c[v], 0)));
  chart.setAttribute("viewBox", `0 0 ${width} 100`);
  chart.replaceChildren();
  columns.forEach((column, i) => {
    const moment = clock(new Date(column.start)).slice(0, 5);
    const title = svg("title");
    title.textContent = t("js.trend", { ok: column.OK, ng: column.NG, review: column.REVIEW, error: column.ERROR, from: moment });
    const group = svg("g", {}, title, svg("rect", { x: i * 100 + 6, y: 0, width: 88, height: 100, fill: "transparent" }));
    let top = 100;
    for (const verdict of STACK) {
      const height = (96 * column[verdict]) / most;
      top -= height;
      if (height > 0) group.append(svg("rect", { class: `bar v-${verdict}`, x: i * 100 + 6, y: top, width: 88, height }));
    }
    chart.append(group);
  });
}

// -- the line to the server ---------------------------------------------------------------------------------------

let heard = Date.now();
let since = null;
let trouble = "";

function alarm() {
  const silent = Date.now() - heard > SILENT_MS;
  if (since === null && (silent || source.readyState !== EventSource.OPEN) && Date.now() - began > 3000) since = new Date();
  lost.hidden = since === null && !trouble;
  if (!lost.hidden) {
    const text = trouble || t("js.lost", { time: clock(since) });
    if (lost.textContent !== text) lost.textContent = text;
  }
  for (const tile of tiles.values()) tile.node.classList.toggle("dead", !lost.hidden);
}

const began = Date.now();
let source;
function connect() {
  source?.close();
  source = new EventSource(`/api/events?hours=${wall.dataset.hours}`);
  const listen = (name, handle) =>
    source.addEventListener(name, (event) => {
      heard = Date.now();
      since = null;
      handle(JSON.parse(event.data));
      alarm();
    });
  listen("result", (result) => show(result, true));
  listen("figures", figures);
  listen("ping", () => {});
  listen("trouble", (data) => (trouble = t("js.trouble", { message: data.message })));
  listen("recovered", () => (trouble = ""));
  listen("ended", () => location.reload());
  source.addEventListener("error", () => {
    // The browser tries again by itself, but not after an answer other than 200.
    if (source.readyState === EventSource.CLOSED) setTimeout(reconnect, 3000);
    alarm();
  });
}

/** After an outage what happened meanwhile is in the page itself. A withdrawn login leads to the login page. */
async function reconnect() {
  try {
    const reply = await fetch("/alive", { cache: "no-store" });
    if (reply.ok) return location.reload();
  } catch {
    // still away
  }
  setTimeout(reconnect, 3000);
}

for (const result of start.tiles) show(result, false);
figures(start.figures);
arrange();
connect();
let wasOpen = false;
setInterval(() => {
  for (const tile of tiles.values()) tick(tile);
  alarm();
  // A stream that came back after an outage starts with what is new: results in between are read from the page.
  if (since !== null) wasOpen = true;
  else if (wasOpen) location.reload();
  if (Date.now() - heard > SILENT_MS * 2) reconnect();
}, 1000);

onKey((event, key) => {
  if (event.ctrlKey) return false;
  if (/^[1-9]$/.test(key)) {
    const tile = [...wall.querySelectorAll(".tile")][Number(key) - 1];
    const found = [...tiles.values()].find((candidate) => candidate.node === tile);
    if (found) choose(found.key);
    return true;
  }
  if (key === "Escape" && chosen !== null) {
    choose(null);
    return true;
  }
  if (key === "f") {
    if (document.fullscreenElement) document.exitFullscreen();
    else document.documentElement.requestFullscreen().catch(() => {});
    return true;
  }
  return false;
});
