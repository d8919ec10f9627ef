"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const FORM = document.querySelector(".filters");
const COUNT = new Intl.NumberFormat("en");

function element(parent, name, text = null, classes = "") {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  if (text !== null) made.textContent = text;
  parent.appendChild(made);
  return made;
}

function options(select, entries) {
  const before = select.value;
  select.replaceChildren();
  for (const [value, text] of entries) element(select, "option", text).value = value;
  if (entries.some(([value]) => String(value) === before)) select.value = before;
}

const unique = (texts) => [...new Set(texts)];

function shown(value) {
  if (value === null) return "none";
  return typeof value !== "number" || Number.isInteger(value) ? String(value) : value.toPrecision(4);
}

function picture(parent, address, description) {
  const image = element(parent, "img");
  image.alt = description;
  image.src = address;
  // Images of few pixels are PNG; they are enlarged without smoothing.
  if (address.startsWith("data:image/png")) image.className = "pixels";
}

function card(list, image, chosen) {
  const item = element(list, "li"), figure = element(item, "figure");
  const name = "image " + image.id + ", seed " + image.seed;
  if (image.original) {
    const pair = element(figure, "div", null, "pair");
    picture(pair, image.original, "original of " + name);
    picture(pair, image.src, "reconstruction, " + name);
  } else picture(figure, image.src, name);
  element(figure, "figcaption", image.asked || name);
  const numbers = element(item, "dl");
  const entry = (title, value, classes = "") => {
    const row = element(numbers, "div", null, classes);
    element(row, "dt", title);
    element(row, "dd", typeof value === "string" ? value : shown(value), typeof value === "string" ? "" : "number");
  };
  DATA.columns.forEach((column, number) => {
    const value = image.values[number];
    if (value !== "") entry(column.title, value, number === chosen ? "chosen" : "");
  });
  if (image.group && image.group !== image.asked) entry("task", image.group);
  entry("image", image.id);
  entry("seed", image.seed);
}

function draw() {
  const { subject, setting, score, group } = FORM.elements, chosen = Number(score.value);
  const set = DATA.sets.find((x) => x.subject === subject.value && x.setting === setting.value);
  options(group, [["", "all"], ...unique(set.pictures.map((x) => x.group).filter(Boolean)).sort(
    (a, b) => a.localeCompare(b, "en", { numeric: true })).map((x) => [x, x])]);
  group.disabled = group.options.length < 2;
  const counts = ["worst", "best"].map((end) => {
    const list = document.getElementById(end);
    const images = (set[end][chosen] || []).map((number) => set.pictures[number])
      .filter((x) => !group.value || x.group === group.value);
    list.replaceChildren();
    for (const image of images) card(list, image, chosen);
    if (!images.length) element(list, "li", "None of them.");
    return images.length;
  });
  const column = DATA.columns[chosen], tied = set.tied[chosen] || [0, 0];
  const more = ["worst", "best"].map((end, i) =>
    tied[i] ? " " + COUNT.format(tied[i]) + " more score like the last of the " + end + "." : "").join("");
  FORM.querySelector("output").textContent = "The " + counts[0] + " worst and " + counts[1] + " best of "
    + COUNT.format(set.images) + " images by " + column.title + ", " + column.direction + " is better."
    + (group.value ? "" : more);
}

const scores = DATA.columns.map((x, number) => [number, x.title])
  .filter(([number]) => DATA.sets.some((x) => number in x.worst));
const subjects = new Map(DATA.sets.map((x) => [x.subject, x.title]));
if (scores.length) {
  options(FORM.elements.subject, [...subjects]);
  options(FORM.elements.setting, unique(DATA.sets.map((x) => x.setting)).map((x) => [x, x]));
  options(FORM.elements.score, scores);
  // First a score that tells its images apart.
  const clear = scores.find(([number]) => (DATA.sets[0].tied[number] || [1, 1]).every((x) => x === 0));
  if (clear) FORM.elements.score.value = clear[0];
  FORM.addEventListener("change", draw);
  draw();
} else FORM.querySelector("output").textContent = "No score of these images says which of them is better.";
FORM.addEventListener("submit", (event) => event.preventDefault());
