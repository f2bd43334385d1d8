// What the page asks for, computed in the browser: ONNX Runtime, the model and the examples
// lie beside it in pieces, scripts that call `piece`, for a page that was opened as a file
// may load scripts and nothing else. FILES (of pieces.js) says how many each file has.
const pieces = new Map();
const piece = (name, text) => pieces.set(name, text);

const backend = (() => {
  const OTHERS = 40, MOST_PIXELS = 2 ** 25, KEPT_BYTES = 2 ** 28;
  const kept = new Map(), decoder = new TextDecoder();
  let predictor, started;

  const script = address => new Promise((done, failed) => {
    const element = document.createElement("script");
    element.src = address;
    element.onload = () => { element.remove(); done(); };
    element.onerror = () => failed(new Error(`${address} is missing; keep all files of this folder together.`));
    document.head.append(element);
  });

  const through = async (blob, kind) => new Uint8Array(
    await new Response(blob.stream().pipeThrough(kind)).arrayBuffer());

  async function file(name) {
    const parts = [];
    for (let n = 0; n < FILES[name]; n++) {
      await script(`files/${name}.${n}.js`);
      parts.push(Uint8Array.from(atob(pieces.get(`${name}.${n}`)), c => c.charCodeAt(0)));
      pieces.delete(`${name}.${n}`);
    }
    return through(new Blob(parts), new DecompressionStream("deflate"));
  }

  async function start() {
    await script("files/pieces.js");
    await script("files/ort.wasm.min.js");
    const { about, facts } = JSON.parse(decoder.decode(await file("model.json")));
    const module = await file("ort-wasm-simd-threaded.mjs");
    Object.assign(ort.env.wasm, { numThreads: 1, wasmBinary: (await file("ort-wasm-simd-threaded.wasm")).buffer,
      wasmPaths: { mjs: URL.createObjectURL(new Blob([module], { type: "text/javascript" })) } });
    const weights = { path: "weights.bin", data: await file("weights.bin") }, sessions = {};
    for (const name of ["encode", "classify"])
      sessions[name] = await ort.InferenceSession.create(await file(`${name}.onnx`), { externalData: [weights] });
    predictor = new Predictor(about, async (name, inputs) => {
      const session = sessions[name], given = {};
      for (const key of session.inputNames) {
        const { type = "float32", data, dims } = inputs[key];
        given[key] = new ort.Tensor(type, data, dims);
      }
      return session.run(given);
    });
    return { ...facts, largest_file: Infinity, most_pixels: MOST_PIXELS };
  }

  async function read(file) {
    let image;
    try { image = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" }); }
    catch { throw new Error("This is no picture that this browser can read."); }
    const { width, height } = image;
    if (width * height > MOST_PIXELS)
      throw new Error(`The picture has ${width} x ${height} pixels; this page takes ${MOST_PIXELS.toLocaleString()} in all.`);
    const context = new OffscreenCanvas(width, height).getContext("2d");
    context.drawImage(image, 0, 0);
    const four = context.getImageData(0, 0, width, height).data, data = new Uint8Array(3 * width * height);
    for (let i = 0, j = 0; i < four.length; i++) if (i % 4 < 3) data[j++] = four[i];
    return { data, size: [height, width] };
  }

  // As Service of mlseg_jax/serving/service.py: which labels are considered, and which kept.
  function candidates(seen, { k, allowed, also, without }) {
    const considered = predictor.names.map(() => !allowed.length);
    for (const id of [...allowed, ...also]) considered[id] = true;
    for (const id of without) considered[id] = false;
    if (!considered.includes(true)) throw new Error("No label is left to choose from; allow some.");
    const always = also.filter(id => considered[id]);
    if (!always.length) return { considered, candidates: considered, always, k };
    const best = order(seen, considered).slice(0, k);
    const chosen = [...new Set([...always, ...best])].slice(0, predictor.ranks), among = considered.map(() => false);
    for (const id of chosen) among[id] = true;
    return { considered, candidates: among, always, k: chosen.length };
  }

  const order = ({ best }, considered) => [...best.keys()].filter(id => !considered || considered[id])
    .sort((a, b) => best[b] - best[a] || a - b);

  async function select(seen, choice, size) {
    const start = performance.now(), { considered, ...among } = candidates(seen, choice);
    const found = await predictor.segment(seen, { ...among, top: choice.top, size });
    const selected = new Set(found.labels.map(x => x.class_id)), rank = new Map(order(seen).map((id, n) => [id, n]));
    const coloured = x => ({ ...x, colour: predictor.about.colours[x.class_id] });
    const others = order(seen, considered).filter(id => !selected.has(id)).slice(0, OTHERS)
      .map(id => ({ name: predictor.names[id], class_id: id, score: sigmoid(seen.best[id]), rank: rank.get(id) }));
    return { ...found, height: size[0], width: size[1], labels: found.labels.map(coloured),
      others: others.map(coloured), milliseconds: { selection: Math.round(performance.now() - start) } };
  }

  function at(seen, longest) {
    const factor = longest ? longest / Math.max(...seen.size) : 1;
    return seen.size.map(side => Math.max(1, Math.round(side * factor)));
  }

  function stored(picture) {
    if (kept.has(picture)) return kept.get(picture);
    throw Object.assign(new Error("This picture is no longer kept."), { status: 410 });
  }

  const weight = seen => seen.encoded.flatMap(Object.values).reduce((sum, x) => sum + x.data.byteLength, 0);

  async function open(file, choice) {
    await started;
    const start = performance.now(), seen = await predictor.look(await read(file));
    const encoder = Math.round(performance.now() - start), picture = crypto.randomUUID?.() || String(start);
    kept.set(picture, seen);
    while (kept.size > 1 && [...kept.values()].reduce((sum, x) => sum + weight(x), 0) > KEPT_BYTES)
      kept.delete(kept.keys().next().value);
    const result = await select(seen, choice, at(seen, choice.longest));
    return { ...result, picture, milliseconds: { encoder, ...result.milliseconds } };
  }

  async function mask(file, picture, choice) {
    const seen = kept.get(picture) || await predictor.look(await read(file));
    const { labels, places } = await select(seen, choice, seen.size);
    const bytes = predictor.names.length <= 255 ? 1 : 2, [height, width] = seen.size;
    const lines = new Uint8Array(height * (1 + width * bytes));
    for (let y = 0, to = 0; y < height; y++) {
      to++;  // lines are as they are, without a filter
      for (let x = 0; x < width; x++) {
        const id = labels[places[y * width + x]].class_id;
        if (bytes === 2) lines[to++] = id >> 8;
        lines[to++] = id & 255;
      }
    }
    const packed = await through(new Blob([lines]), new CompressionStream("deflate"));
    const header = new DataView(new ArrayBuffer(13));
    header.setUint32(0, width); header.setUint32(4, height); header.setUint8(8, 8 * bytes);
    const chunks = [["IHDR", new Uint8Array(header.buffer)], ["IDAT", packed], ["IEND", new Uint8Array(0)]];
    return new Blob([Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), ...chunks.flatMap(chunk)], { type: "image/png" });
  }

  function chunk([kind, data]) {
    const body = new Uint8Array(4 + data.length), ends = new DataView(new ArrayBuffer(8));
    body.set(new TextEncoder().encode(kind)); body.set(data, 4);
    let crc = -1;
    for (const byte of body) {
      crc ^= byte;
      for (let bit = 0; bit < 8; bit++) crc = crc >>> 1 ^ (crc & 1 && 0xedb88320);
    }
    ends.setUint32(0, data.length); ends.setUint32(4, ~crc);
    return [ends.buffer.slice(0, 4), body, ends.buffer.slice(4)];
  }

  return {
    where: "It stays in this browser.",
    model: () => started ||= start(),
    open,
    select: async (picture, choice) => { const seen = stored(picture); return select(seen, choice, at(seen, choice.longest)); },
    mask,
    labels: async (text, limit) => {
      const wanted = text.toLowerCase(), name = id => predictor.names[id].toLowerCase();
      const found = [...predictor.names.keys()].filter(id => name(id).includes(wanted));
      found.sort((a, b) => name(b).startsWith(wanted) - name(a).startsWith(wanted) || a - b);
      return found.slice(0, limit).map(id => ({ name: predictor.names[id], class_id: id }));
    },
    example: async i => new Blob([await file(`example_${i}.jpg`)], { type: "image/jpeg" }),
  };
})();
