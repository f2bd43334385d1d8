"use strict";
const $ = id => document.getElementById(id);
const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
const percent = x => x > 0 && x < 0.0005 ? "<0.1%" : (100 * x).toFixed(1) + "%";
// `shown`: what the result is of: file, image, what the backend calls it, and its choice.
const state = { model: null, file: null, image: null, picture: null, result: null, shown: null,
  places: null, shares: null, alone: null, names: new Map(), cursor: null,
  without: new Set(), also: new Set(), allowed: new Set(), running: false, again: false };

// ------------------------------------------------------------------ what is drawn
function show() {
  const { result } = state;
  for (const id of ["under", "panel", "canvas"]) $(id).hidden = false;
  $("empty").hidden = true;
  document.querySelector("main").classList.remove("fresh");
  for (const label of [...result.labels, ...result.others]) state.names.set(label.class_id, label.name);
  if (!result.labels.some(x => x.class_id === state.alone)) state.alone = null;
  draw(); list(); chips();
  const times = result.milliseconds, parts = [];
  if (times.encoder !== undefined) parts.push(`encoder ${times.encoder} ms`);
  parts.push(`selection and pixels ${times.selection} ms`, `on this page ${times.page} ms`);
  $("times").textContent = parts.join(" · ");
  const seen = result.labels.filter(x => x.pixel_share > 0);
  const best = result.labels[0];
  $("said").textContent = `${seen.length} of ${result.labels.length} labels are seen; the best is ${best.name}, ${percent(best.score)}.`;
  $("canvas").setAttribute("aria-label", "The picture under its labels: " +
    seen.slice(0, 8).map(x => `${x.name} ${percent(x.pixel_share)}`).join(", ") +
    ". Arrow keys move over it and say what is there.");
}

const layer = document.createElement("canvas");
function draw() {
  const { result, places, alone } = state;
  if (!result) return;
  const { image } = state.shown;
  const { width, height } = result, canvas = $("canvas");
  const zoom = Math.max(1, Math.ceil(720 / Math.max(width, height)));
  canvas.width = width * zoom; canvas.height = height * zoom;
  const context = canvas.getContext("2d");
  if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
  else { context.fillStyle = "#888"; context.fillRect(0, 0, canvas.width, canvas.height); }
  const colours = result.labels.map(x => parseInt(x.colour.slice(1), 16));
  const place = alone === null ? -1 : result.labels.findIndex(x => x.class_id === alone);
  layer.width = width; layer.height = height;
  const inner = layer.getContext("2d"), data = inner.createImageData(width, height);
  const strength = Math.round(2.55 * $("strength").value);
  for (let i = 0, j = 0; i < width * height; i++, j += 4) {
    const p = places[i];
    if (place >= 0 && p !== place) {  // all but one label: dim
      data.data[j] = data.data[j + 1] = data.data[j + 2] = 14;
      data.data[j + 3] = 170;
      continue;
    }
    const c = colours[p];
    data.data[j] = c >> 16; data.data[j + 1] = c >> 8 & 255; data.data[j + 2] = c & 255;
    data.data[j + 3] = place >= 0 ? Math.min(strength, 120) : strength;
  }
  inner.putImageData(data, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(layer, 0, 0, canvas.width, canvas.height);
  borders(context, zoom);
  if (state.cursor) cross(context, zoom);
}

function borders(context, zoom) {
  if (+$("strength").value === 0) return;
  const { places, alone, result: { width, height, labels } } = state;
  context.fillStyle = "rgb(20 20 24 / 75%)";
  const line = Math.max(2, Math.round(zoom / 4));
  const place = alone === null ? -1 : labels.findIndex(x => x.class_id === alone);
  const differ = (a, b) => a !== b && (place < 0 || a === place || b === place);
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (x + 1 < width && differ(places[i], places[i + 1])) context.fillRect((x + 1) * zoom - line, y * zoom, line, zoom);
      if (y + 1 < height && differ(places[i], places[i + width])) context.fillRect(x * zoom, (y + 1) * zoom - line, zoom, line);
    }
}

function cross(context, zoom) {
  const { x, y } = state.cursor;
  context.strokeStyle = "#fff"; context.lineWidth = 4;
  context.strokeRect((x - 2) * zoom, (y - 2) * zoom, 5 * zoom, 5 * zoom);
  context.strokeStyle = "#000"; context.lineWidth = 2;
  context.strokeRect((x - 2) * zoom, (y - 2) * zoom, 5 * zoom, 5 * zoom);
}

function bestAt(x, y) {
  const { result: { width, height, labels }, places, shares } = state;
  const size = width * height, found = [];
  for (let n = 0; n * size < places.length; n++) {
    const i = n * size + y * width + x;
    found.push({ label: labels[places[i]], share: shares[i] });
  }
  return found;
}

function tell(x, y, left, top) {
  const tip = $("tip"), stage = $("stage").getBoundingClientRect();
  tip.replaceChildren(...bestAt(x, y).map(({ label, share }) => {
    const row = make("div"), colour = make("i");
    colour.style.background = label.colour;
    row.append(colour, make("b", "", label.name), make("span", "", share + "%"));
    return row;
  }));
  tip.hidden = false;
  tip.style.left = Math.min(left + 16, stage.width - tip.offsetWidth - 6) + "px";
  tip.style.top = Math.min(top + 16, stage.height - tip.offsetHeight - 6) + "px";
}

$("canvas").addEventListener("pointermove", event => {
  const box = $("canvas").getBoundingClientRect(), { width, height } = state.result;
  const x = Math.floor((event.clientX - box.left) / box.width * width);
  const y = Math.floor((event.clientY - box.top) / box.height * height);
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  const stage = $("stage").getBoundingClientRect();
  tell(x, y, event.clientX - stage.left, event.clientY - stage.top);
});
$("canvas").addEventListener("pointerleave", () => { $("tip").hidden = true; });
$("canvas").addEventListener("click", event => {
  const box = $("canvas").getBoundingClientRect(), { width, height } = state.result;
  const x = Math.floor((event.clientX - box.left) / box.width * width);
  const y = Math.floor((event.clientY - box.top) / box.height * height);
  only(bestAt(Math.min(x, width - 1), Math.min(y, height - 1))[0].label.class_id);
});
$("canvas").addEventListener("keydown", event => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key === "Escape") { state.cursor = null; $("tip").hidden = true; return draw(); }
  if (event.key === "Enter" && state.cursor) return only(bestAt(state.cursor.x, state.cursor.y)[0].label.class_id);
  const move = moves[event.key];
  if (!move) return;
  event.preventDefault();
  const { width, height } = state.result, step = Math.max(1, Math.round(Math.max(width, height) / 48));
  const from = state.cursor || { x: width >> 1, y: height >> 1 };
  const limit = (value, most) => Math.min(Math.max(value, 0), most - 1);
  state.cursor = { x: limit(from.x + step * move[0], width), y: limit(from.y + step * move[1], height) };
  draw();
  const box = $("canvas").getBoundingClientRect(), stage = $("stage").getBoundingClientRect();
  tell(state.cursor.x, state.cursor.y, box.left - stage.left + state.cursor.x / width * box.width,
    box.top - stage.top + state.cursor.y / height * box.height);
  $("said").textContent = bestAt(state.cursor.x, state.cursor.y).map(b => `${b.label.name} ${b.share}%`).join(", ");
});
