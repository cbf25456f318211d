"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const table = byId("images");
  const viewer = byId("viewer");

  // ---- pictures -------------------------------------------------------------------------------------------------
  const cards = [...document.querySelectorAll(".card")];
  let current = -1;

  function fitViewer() {
    const frame = byId("viewer-frame");
    const fits = [...frame.querySelectorAll(".fit")];
    const style = getComputedStyle(frame);
    const room = frame.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight) - 10 * (fits.length - 1);
    const height = frame.clientHeight - parseFloat(style.paddingBottom);
    for (const fit of fits) {
      const image = fit.querySelector("img");
      const scale = Math.min(room / fits.length / image.width0, height / image.height0);
      image.style.width = `${Math.floor(image.width0 * scale)}px`;
      image.style.height = `${Math.floor(image.height0 * scale)}px`;
    }
  }

  function copyOf(card, golden) {
    const source = card.querySelector(".fit");
    const fit = source.cloneNode(true);
    const image = fit.querySelector("img");
    image.width0 = Number(image.getAttribute("width"));
    image.height0 = Number(image.getAttribute("height"));
    image.style.maxWidth = "none";
    if (golden) {
      const sample = card.querySelector(".golden img");
      image.src = sample.src;
      image.alt = sample.alt;
    }
    return fit;
  }

  function show(index) {
    if (!cards.length) return;
    current = (index + cards.length) % cards.length;
    const card = cards[current];
    const frame = byId("viewer-frame");
    const toggle = byId("viewer-golden");
    toggle.hidden = !card.querySelector(".golden");
    const both = !toggle.hidden && toggle.getAttribute("aria-pressed") === "true";
    frame.replaceChildren(copyOf(card, false), ...(both ? [copyOf(card, true)] : []));
    const chips = card.querySelector(".chips");
    byId("viewer-chips").replaceChildren(...(chips ? [chips.cloneNode(true)] : []));
    byId("viewer-title").textContent =
      `${current + 1} / ${cards.length}  ${card.querySelector("img").alt}`;
    if (!viewer.open) viewer.showModal();
    fitViewer();
  }

  function press(id) {
    const button = byId(id);
    if (button.hidden) return;
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(on));
    byId("viewer-frame").classList.toggle("plain", byId("viewer-boxes").getAttribute("aria-pressed") !== "true");
    show(current);
  }

  cards.forEach((card, index) => card.querySelector(".frame").addEventListener("click", () => show(index)));
  byId("viewer-boxes").addEventListener("click", () => press("viewer-boxes"));
  byId("viewer-golden").addEventListener("click", () => press("viewer-golden"));
  byId("viewer-previous").addEventListener("click", () => show(current - 1));
  byId("viewer-next").addEventListener("click", () => show(current + 1));
  byId("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    const actions = {
      ArrowLeft: () => show(current - 1), ArrowRight: () => show(current + 1),
      b: () => press("viewer-boxes"), g: () => press("viewer-golden"),
    };
    const action = actions[event.key];
    if (action) { event.preventDefault(); action(); }
  });
  addEventListener("resize", () => { if (viewer.open) fitViewer(); });

  if (!table) return;

  // ---- sorting --------------------------------------------------------------------------------------------------
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const headers = [...table.tHead.rows[0].cells];
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });
  const valueOf = (row, column, type) => {
    const cell = row.cells[column];
    return type === "number" ? Number(cell.dataset.v) : cell.textContent.trim();
  };

  headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
    const down = header.getAttribute("aria-sort") === "ascending";
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const type = header.dataset.type;
    const sign = down ? -1 : 1;
    const decorated = rows.map((row, index) => [valueOf(row, column, type), index, row]);
    decorated.sort((a, b) =>
      sign * (type === "number" ? a[0] - b[0] : collator.compare(a[0], b[0])) || a[1] - b[1]);
    body.append(...decorated.map((entry) => entry[2]));
  }));

  // ---- filters --------------------------------------------------------------------------------------------------
  const words = byId("words");
  const verdict = byId("verdict");
  const kind = byId("kind");
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));

  function filter() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const visible = wanted.every((word) => texts.get(row).includes(word))
        && (!verdict.value || row.dataset.verdict === verdict.value)
        && (!kind.value || row.dataset.kinds.split("|").includes(kind.value));
      row.hidden = !visible;
      shown += visible;
    }
    const output = byId("shown");
    output.textContent = output.dataset.text.replace("%n", shown).replace("%t", rows.length);
  }
  for (const control of [words, verdict, kind]) control.addEventListener("input", filter);
  words.form.addEventListener("submit", (event) => event.preventDefault());
  filter();

  // ---- keyboard -------------------------------------------------------------------------------------------------
  rows.forEach((row, index) => { row.tabIndex = index ? -1 : 0; });
  function moveTo(row) {
    if (!row) return;
    rows.forEach((other) => { other.tabIndex = -1; });
    row.tabIndex = 0;
    row.focus();
  }
  function open(row) {
    const link = row.querySelector("a");
    const index = link ? cards.findIndex((card) => `#${card.id}` === link.getAttribute("href")) : -1;
    if (index >= 0) show(index);
  }
  body.addEventListener("keydown", (event) => {
    const row = event.target.closest("tr");
    const visible = [...body.rows].filter((candidate) => !candidate.hidden);
    const at = visible.indexOf(row);
    const target = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: visible.length - 1 }[event.key];
    if (target !== undefined) {
      event.preventDefault();
      moveTo(visible[target]);
    } else if (event.key === "Enter" && event.target === row) {
      open(row);
    }
  });
  body.addEventListener("click", (event) => {
    if (event.target.closest("a")) { event.preventDefault(); open(event.target.closest("tr")); }
  });
  addEventListener("keydown", (event) => {
    if (viewer.open || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !typing) {
      event.preventDefault();
      words.focus();
    } else if (event.key === "Escape") {
      words.value = verdict.value = kind.value = "";
      filter();
    }
  });
})();
