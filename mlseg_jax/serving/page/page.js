"use strict";
// ------------------------------------------------------------------ what is asked
const choice = (more = {}) => ({ k: +$("k").value, ...more, without: [...state.without],
  also: [...state.also], allowed: [...state.allowed] });

function open(file) {
  if (file.type.startsWith("video/")) return strip.open(file);
  strip.close();
  return openPicture(file);
}

// `keep`: what is chosen stays so; `picture`: what the backend calls it, if it knows it.
async function openPicture(file, { keep = false, picture = null } = {}) {
  say(null);
  if (state.model && file.size > state.model.largest_file)
    return say(`This file is larger than ${Math.round(state.model.largest_file / 2 ** 20)} MB.`);
  Object.assign(state, { file, picture, image: null, cursor: null });
  if (!keep) {
    state.alone = null;
    for (const key of ["without", "also", "allowed"]) state[key].clear();
  }
  let image = null;
  try {
    image = await createImageBitmap(file);
  } catch { }  // The server may read what the browser cannot show.
  if (state.file !== file) return;  // Another one was chosen meanwhile.
  state.image = image;
  await refresh();
}

async function refresh() {
  if (!state.file) return;
  if (state.running) { state.again = true; return; }
  state.running = true;
  say(null);  // Not when it has ended: something else may have gone wrong meanwhile.
  $("busy").hidden = false;
  let { file } = state;
  try {
    await ready;
    const start = performance.now();
    ({ file } = state);  // Another one may have been chosen meanwhile.
    // Small pictures are shown larger, and so are their maps.
    const side = state.image ? Math.max(state.image.width, state.image.height) : 1024;
    const most = Math.floor(Math.sqrt((state.model?.most_pixels ?? Infinity) / 3));
    const values = choice({ top: 3, longest: Math.min(Math.max(side, 640), 1024, most) });
    let found = null, posted = false;
    if (state.picture) {
      try { found = await backend.select(state.picture, values); }
      catch (error) { if (error.status !== 410) throw error; }
    }
    if (!found) { posted = true; found = await backend.open(file, values); }
    const { places, shares, ...result } = found;
    result.milliseconds.page = Math.round(10 * (performance.now() - start)) / 10;
    if (state.file === file) {  // else of a picture that is no longer shown
      state.picture = result.picture || (posted ? null : state.picture);
      const { file, image, picture } = state, { top, longest, ...own } = values;
      Object.assign(state, { result, places, shares, shown: { file, image, picture, choice: own } });
      show();
    }
  } catch (error) {
    if (state.file === file) { say(error.message); back(); }
  }
  state.running = false;
  $("busy").hidden = true;
  if (state.again) { state.again = false; return refresh(); }
  strip.update();
}

// To what is shown, where another picture was refused.
function back() {
  if (!state.shown || state.shown.file === state.file) return;
  const { choice, ...shown } = state.shown;
  Object.assign(state, shown);
  $("k").value = choice.k; $("k-value").textContent = choice.k;
  for (const key of ["without", "also", "allowed"]) state[key] = new Set(choice[key]);
  draw(); list(); chips();
}

function say(problem) {
  $("problem").hidden = !problem;
  $("problem").textContent = problem || "";
}

// ------------------------------------------------------------------ the labels
function only(id) { state.alone = state.alone === id ? null : id; draw(); list(); }

function change(key, id, on) {
  state[key][on ? "add" : "delete"](id);
  // What is added is not off as well, and the other way round.
  const other = { also: "without", allowed: "without", without: "also" }[key];
  if (on) state[other].delete(id);
  refresh();
}

function list() {
  const { result } = state, rows = [];
  const line = (label, off) => {
    const item = make("li", off ? "off" : ""), tick = make("input"), row = make("button", "row");
    tick.type = "checkbox"; tick.checked = !off;
    tick.setAttribute("aria-label", `Consider ${label.name}`);
    tick.addEventListener("change", () => change("without", label.class_id, !tick.checked));
    row.type = "button";
    row.setAttribute("aria-pressed", state.alone === label.class_id);
    row.title = `Show ${label.name} alone`;
    const colour = make("span", "swatch"), bar = make("span", "bar"), fill = make("i");
    colour.style.background = fill.style.background = label.colour;
    fill.style.width = 100 * label.score + "%";
    bar.append(fill);
    row.append(colour, make("span", "name", label.name), make("span", "number", percent(label.score)),
      make("span", "number", off ? "" : percent(label.pixel_share)), bar);
    row.addEventListener("click", () => off || only(label.class_id));
    item.append(tick, row);
    return item;
  };
  for (const label of result.labels) rows.push(line(label, false));
  for (const id of state.without)
    rows.push(line({ class_id: id, name: state.names.get(id) || "#" + id, score: 0, colour: "#888888" }, true));
  const focus = document.activeElement?.closest?.("#labels li");
  const at = focus ? [...$("labels").children].indexOf(focus) : -1;
  const ticked = document.activeElement?.type === "checkbox";
  $("labels").replaceChildren(...rows);
  if (at >= 0) $("labels").children[Math.min(at, rows.length - 1)].querySelector(ticked ? "input" : ".row").focus();
  $("count").textContent = `${result.labels.filter(x => x.pixel_share > 0).length} seen of ${result.labels.length} selected`;
  $("others-card").hidden = !result.others.length;
  $("others").replaceChildren(...result.others.map(label => {
    const item = make("li"), row = make("span", "row"), add = make("button", "small", "Add");
    const colour = make("span", "swatch");
    colour.style.background = label.colour;
    row.append(colour, make("span", "name", label.name), make("span", "number", percent(label.score)),
      make("span", "number", "#" + (label.rank + 1)));
    add.type = "button";
    add.setAttribute("aria-label", `Add ${label.name}`);
    add.addEventListener("click", () => change("also", label.class_id, true));
    item.append(row, add);
    return item;
  }));
  $("whole").hidden = state.alone === null;
}

function chips() {
  const words = { also: "added", allowed: "only", without: "off" }, all = [];
  for (const key of ["allowed", "also", "without"])
    for (const id of state[key]) {
      const chip = make("span", "chip", `${words[key]}: ${state.names.get(id) || "#" + id}`);
      const close = make("button", "", "×");
      close.type = "button";
      close.setAttribute("aria-label", `Take back: ${chip.textContent}`);
      close.addEventListener("click", () => change(key, id, false));
      chip.append(close);
      all.push(chip);
    }
  $("chips").replaceChildren(...all);
}

let typing = 0;
$("search").addEventListener("input", async () => {
  const mine = ++typing, text = $("search").value.trim();
  if (!text) return $("found").replaceChildren();
  try {
    const labels = await backend.labels(text, 8);
    if (mine !== typing) return;
    $("found").replaceChildren(...labels.map(({ name, class_id }) => {
      state.names.set(class_id, name);
      const item = make("li"), add = make("button", "small", "Add"), one = make("button", "small", "Only");
      add.type = one.type = "button";
      add.setAttribute("aria-label", `Add ${name}`);
      one.setAttribute("aria-label", `Only ${name}`);
      add.addEventListener("click", () => change("also", class_id, true));
      one.addEventListener("click", () => change("allowed", class_id, true));
      const span = make("span", "name", name);
      span.style.flex = "1";
      item.append(span, add, one);
      return item;
    }));
    if (!labels.length) $("found").replaceChildren(make("li", "", "No label has this in its name."));
  } catch (error) { say(error.message); }
});

// ------------------------------------------------------------------ controls
$("k").addEventListener("input", () => { $("k-value").textContent = $("k").value; refresh(); });
$("strength").addEventListener("input", () => { $("strength-value").textContent = $("strength").value + "%"; draw(); });
$("strength").addEventListener("change", () => strip.update());
$("whole").addEventListener("click", () => { state.alone = null; draw(); list(); });
$("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme || (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});
$("file").addEventListener("change", () => { if ($("file").files[0]) open($("file").files[0]); $("file").value = ""; });
for (const kind of ["dragenter", "dragover"]) addEventListener(kind, event => { event.preventDefault(); $("stage").classList.add("over"); });
for (const kind of ["dragleave", "drop"]) addEventListener(kind, event => { event.preventDefault(); if (kind === "drop" || !event.relatedTarget) $("stage").classList.remove("over"); });
addEventListener("drop", event => { if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]); });
addEventListener("paste", event => {
  const file = [...event.clipboardData.files].find(x => /^(image|video)\//.test(x.type));
  if (file) { event.preventDefault(); open(file); }
});
const save = (blob, ending, file = state.shown.file) => {
  const link = make("a"), name = (file.name || "picture").replace(/\.\w+$/, "");
  link.href = URL.createObjectURL(blob); link.download = name + ending; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
$("save-mask").addEventListener("click", async () => {
  const { file, picture, choice } = state.shown;
  try {
    save(await backend.mask(file, picture, choice), "_mask.png", file);
  } catch (error) { say(error.message); }
});
$("save-view").addEventListener("click", () => $("canvas").toBlob(blob => save(blob, "_view.png")));
$("save-json").addEventListener("click", () => save(new Blob([JSON.stringify(state.result, null, 1)], { type: "application/json" }), ".json"));

// ------------------------------------------------------------------ start
const ready = (async () => {
  $("strength-value").textContent = $("strength").value + "%";
  $("where").textContent = backend.where;
  const model = state.model = await backend.model();
  $("about").textContent = `${model.name}: chooses among ${model.num_classes.toLocaleString()} labels, then segments into the best of them`;
  $("k").max = model.largest_k; $("k").value = model.usual_k;
  $("k").disabled = !model.selects;
  $("k-value").textContent = $("k").value;
  $("search").placeholder = `Find one of ${model.num_classes.toLocaleString()} labels`;
  for (let i = 0; i < model.examples; i++) {
    const button = make("button"), image = make("img");
    button.type = "button";
    image.alt = `Example ${i + 1}`;
    backend.example(i).then(blob => { image.src = URL.createObjectURL(blob); });
    button.addEventListener("click", async () => {
      const blob = await backend.example(i);
      open(new File([blob], `example_${i + 1}.jpg`, { type: "image/jpeg" }));
    });
    button.append(image);
    $("examples").append(button);
  }
})();
ready.catch(error => say(error.message));
