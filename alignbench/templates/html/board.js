"use strict";
const SVG = "http://www.w3.org/2000/svg";
const DATA = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["", "6 3", "8 3 2 3", "2 3", "12 3", "6 2 2 2 2 2", "3 3", "1 4"];
const SHAPES = [
  "M0-6A6 6 0 1 0 0 6A6 6 0 1 0 0-6Z", "M-5-5H5V5H-5Z", "M0-7L6.5 5H-6.5Z", "M0-7L7 0L0 7L-7 0Z",
  "M0 7L6.5-5H-6.5Z", "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z", "M-6-3L-3-6L0-3L3-6L6-3L3 0L6 3L3 6L0 3L-3 6L-6 3L-3 0Z",
];
const inkOf = (series) => "s" + (series === 0 ? 0 : (series - 1) % 7 + 1);
const inFirst = (number) => number === 0 ? 0 : (number - 1) % 7 + 1;

function element(parent, name, attributes = {}, text = null) {
  const made = parent.namespaceURI === SVG || name === "svg"
    ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.appendChild(made);
  return made;
}

// --- sorting ---

function sortBy(button) {
  const head = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
  const ascending = head.getAttribute("aria-sort") !== "ascending";
  const number = [...head.parentElement.children].indexOf(head);
  for (const other of head.parentElement.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const value = (row) => row.children[number].dataset.value ?? "";
  const numeric = button.dataset.sort === "number";
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = numeric ? x - y : x.localeCompare(y, "en");
    return ascending ? order : -order;
  });
  body.append(...rows);
}

// --- one table with its picture and its panel ---

class Board {
  constructor(section, data) {
    Object.assign(this, { section, data, x: data.x, y: data.y, setting: "", method: "", picked: null });
    this.svg = section.querySelector(".frontier");
    this.panel = section.querySelector(".panel");
    section.querySelector(".plot").hidden = data.metrics.length === 0;
    this.axis(".axis-y", this.y, (value) => { this.y = value; });
    this.axis(".axis-x", this.x, (value) => { this.x = value; }, true);
    const shapes = section.querySelector(".shapes");
    data.settings.forEach((title, number) => {
      const item = element(shapes, "li");
      const mark = element(item, "svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" });
      element(mark, "path", { d: SHAPES[number % SHAPES.length] });
      item.append(" " + title);
    });
    section.addEventListener("pointerover", (event) => this.over(event.target));
    section.addEventListener("focusin", (event) => this.over(event.target));
    section.addEventListener("click", (event) => this.click(event.target));
    this.svg.addEventListener("keydown", (event) => this.move(event));
    this.draw();
  }

  axis(selector, chosen, choose, settings = false) {
    const select = this.section.querySelector(selector);
    if (settings) element(select, "option", { value: -1 }, "sampling setting");
    this.data.metrics.forEach((metric, number) => element(select, "option", { value: number }, metric.title));
    select.value = chosen;
    select.addEventListener("change", () => { choose(Number(select.value)); this.draw(); });
  }

  shown(point) {
    const series = this.data.series[point.series];
    return (!this.setting || this.data.settings[point.setting] === this.setting)
      && (!this.method || series.method === this.method || series.base);
  }

  at(point, axis) {
    const shift = (point.series / this.data.series.length - 0.5) * 0.3;
    return axis < 0 ? [point.setting + shift, point.setting + shift, point.setting + shift] : point.cells[axis];
  }

  draw() {
    const { svg, data } = this, frame = { left: 62, right: 628, top: 12, bottom: 372 };
    svg.replaceChildren();
    this.points = data.points.filter((p) => this.shown(p) && this.at(p, this.x) && this.at(p, this.y))
      .sort((a, b) => a.series - b.series || this.at(a, this.x)[0] - this.at(b, this.x)[0]);
    const scale = (axis, from, to) => {
      const ends = this.points.flatMap((point) => this.at(point, axis).slice(1));
      let low = axis < 0 ? -0.5 : Math.min(...ends), high = axis < 0 ? data.settings.length - 0.5 : Math.max(...ends);
      if (!(high > low)) { low -= 0.5; high += 0.5; }
      const room = axis < 0 ? 0 : (high - low) * 0.05;
      return { low: low - room, high: high + room, place: (v) => from + (v - low + room) / (high - low + 2 * room) * (to - from) };
    };
    if (!this.points.length) {
      element(svg, "text", { x: 320, y: 200, "text-anchor": "middle" }, "No row has both values here.");
      return;
    }
    const x = scale(this.x, frame.left, frame.right), y = scale(this.y, frame.bottom, frame.top);
    this.frame(frame, x, y);
    for (const number of new Set(this.points.map((point) => point.series))) this.line(number, x, y);
    this.groups = this.points.map((point, number) => this.point(point, number, x, y));
    this.mark();
  }

  frame(frame, x, y) {
    const title = (axis) => axis < 0 ? "sampling setting" : this.data.metrics[axis].title;
    for (const value of this.ticks(x, this.x)) {
      const at = x.place(value);
      if (this.x >= 0) element(this.svg, "line", { class: "grid", x1: at, x2: at, y1: frame.top, y2: frame.bottom });
      element(this.svg, "text", { class: "tick", x: at, y: 390, "text-anchor": "middle" }, this.x < 0 ? this.data.settings[value] : value);
    }
    for (const value of this.ticks(y, this.y)) {
      const at = y.place(value);
      element(this.svg, "line", { class: "grid", x1: frame.left, x2: frame.right, y1: at, y2: at });
      element(this.svg, "text", { class: "tick", x: frame.left - 6, y: at + 4, "text-anchor": "end" }, value);
    }
    element(this.svg, "text", { x: 345, y: 412, "text-anchor": "middle" }, title(this.x));
    element(this.svg, "text", { transform: "translate(14 192) rotate(-90)", "text-anchor": "middle" }, title(this.y));
  }

  ticks(scale, axis) {
    if (axis < 0) return this.data.settings.map((_, number) => number);
    const rough = (scale.high - scale.low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const ticks = [];
    for (let number = Math.ceil(scale.low / step); number * step <= scale.high; number++) ticks.push(Number((number * step).toPrecision(6)));
    return ticks;
  }

  line(number, x, y) {
    const own = this.points.filter((point) => point.series === number);
    const corners = own.map((point) => `${x.place(this.at(point, this.x)[0]).toFixed(1)},${y.place(this.at(point, this.y)[0]).toFixed(1)}`);
    element(this.svg, "polyline", {
      class: "join " + inkOf(number), "data-series": number, points: corners.join(" "), "stroke-dasharray": DASHES[inFirst(number)],
    });
  }

  point(point, number, x, y) {
    const [across, up] = [this.at(point, this.x), this.at(point, this.y)];
    const at = [x.place(across[0]), y.place(up[0])];
    const group = element(this.svg, "g", {
      class: inkOf(point.series), "data-series": point.series, "data-point": number, role: "button",
      tabindex: number ? -1 : 0, "aria-label": this.said(point),
    });
    if (this.x >= 0) element(group, "line", { class: "error", x1: x.place(across[1]), x2: x.place(across[2]), y1: at[1], y2: at[1] });
    element(group, "line", { class: "error", x1: at[0], x2: at[0], y1: y.place(up[1]), y2: y.place(up[2]) });
    element(group, "path", { class: "mark", d: SHAPES[point.setting % SHAPES.length], transform: `translate(${at[0].toFixed(1)} ${at[1].toFixed(1)})` });
    return group;
  }

  said(point) {
    const values = [...new Set([this.y, this.x])].filter((axis) => axis >= 0)
      .map((axis) => `${this.data.metrics[axis].title} ${point.texts[axis]}`);
    return `${this.data.series[point.series].label}, ${this.data.settings[point.setting]}: ${values.join(", ")}`;
  }

  over(target) {
    const group = target.closest("[data-point]"), row = target.closest("tbody tr");
    if (group) this.show(this.points[group.dataset.point]);
    else if (row && !this.picked) this.show(this.pointOf(row));
  }

  pointOf(row) {
    const series = Number(row.dataset.series), setting = row.dataset.setting;
    return this.data.points.find((p) => p.series === series && (!setting || this.data.settings[p.setting] === setting));
  }

  click(target) {
    const sorter = target.closest("[data-sort]"), row = target.closest(".pick")?.closest("tr");
    if (sorter) sortBy(sorter);
    if (!row) return;
    this.picked = this.picked === row ? null : row;
    this.show(this.pointOf(row));
  }

  move(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const from = event.target.closest("[data-point]");
    if (!step || !from) return;
    event.preventDefault();
    const next = (Number(from.dataset.point) + step + this.groups.length) % this.groups.length;
    from.setAttribute("tabindex", -1);
    this.groups[next].setAttribute("tabindex", 0);
    this.groups[next].focus();
  }

  show(point) {
    if (!point) return;
    this.chosen = point;
    const series = this.data.series[point.series], panel = this.panel;
    panel.replaceChildren();
    element(panel, "h3", {}, series.label);
    element(panel, "p", { class: "muted" }, [this.data.settings[point.setting], series.cost, series.detail].filter(Boolean).join(" · "));
    const list = element(panel, "dl");
    this.data.metrics.forEach((metric, number) => {
      if (!point.texts[number]) return;
      element(list, "dt", {}, metric.title);
      element(list, "dd", {}, point.texts[number]);
    });
    if (series.grid) element(panel, "img", { src: series.grid, alt: `Samples of run ${series.run}` });
    if (series.command) element(panel, "pre", {}, series.command);
    this.mark();
  }

  mark() {
    const only = this.picked ? Number(this.picked.dataset.series) : -1;
    for (const part of this.svg.querySelectorAll("[data-series]"))
      part.classList.toggle("dim", only >= 0 && Number(part.dataset.series) !== only && Number(part.dataset.series) !== 0);
    this.groups?.forEach((group, number) => group.classList.toggle("chosen", this.points[number] === this.chosen));
    for (const row of this.section.querySelectorAll("tbody tr[data-series]"))
      row.classList.toggle("chosen", this.chosen !== undefined && this.pointOf(row) === this.chosen);
    for (const button of this.section.querySelectorAll(".pick"))
      button.setAttribute("aria-pressed", button.closest("tr") === this.picked);
  }

  filter(chosen) {
    this.section.hidden = (chosen.model && chosen.model !== this.section.dataset.model)
      || (chosen.protocol && chosen.protocol !== this.section.dataset.protocol) || false;
    Object.assign(this, { setting: chosen.setting, method: chosen.method });
    for (const row of this.section.querySelectorAll("tbody tr[data-series]")) {
      const base = this.data.series[row.dataset.series].base;
      row.hidden = (chosen.method && row.dataset.method !== chosen.method && !base)
        || (chosen.setting && row.dataset.setting !== undefined && row.dataset.setting !== chosen.setting) || false;
    }
    if (chosen.setting) this.section.querySelector(".all").open = true;
    this.draw();
  }

  get counts() {
    const rows = this.section.hidden ? [] : [...this.section.querySelectorAll(".all tbody tr")];
    return rows.filter((row) => !row.hidden).length;
  }
}

// --- filters ---

const boards = [...document.querySelectorAll("main section[data-model]")].map((section, number) => new Board(section, DATA[number]));
const form = document.querySelector(".filters");

function filter() {
  const chosen = Object.fromEntries(new FormData(form));
  for (const board of boards) board.filter(chosen);
  const tables = boards.filter((board) => !board.section.hidden).length;
  const rows = boards.reduce((sum, board) => sum + board.counts, 0);
  form.querySelector("output").textContent = `${tables} of ${boards.length} tables, ${rows} rows`;
}

form.addEventListener("change", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
filter();
