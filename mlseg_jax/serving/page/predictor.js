// Pictures of any size through an exported model: mlseg_jax/export/predictor.py once more,
// for browsers. `run(name, inputs)` is a function of the model: names to { dims, data }.
const UNSELECTED = -100, BATCH = 4;
const sigmoid = x => 1 / (1 + Math.exp(-x));

class Predictor {
  constructor(about, run) {
    Object.assign(this, { about, run });
    this.names = about.class_names;
    this.ranks = about.selection.num_ranks;
    this.regions = about.model.num_queries > 0;
  }

  // Runs the encoder over all windows of { data, size } (RGB bytes, height and width).
  async look(picture) {
    const { about } = this, [height, width] = about.input.size;
    const views = resampling.viewsOf(about, picture.size), windows = [];
    let shown = null;
    for (const view of views) {
      if (!view.flip) shown = resampling.resize(picture, view.size);
      for (const y of view.axes[0].starts)
        for (const x of view.axes[1].starts) windows.push({ view, shown, y, x });
    }
    const encoded = [];
    for (let start = 0; start < windows.length; start += BATCH) {
      const chosen = windows.slice(start, start + BATCH), count = chosen.length;
      const image = new Uint8Array(count * height * width * 3), sizes = new Int32Array(2 * count);
      chosen.forEach((window, n) => {
        sizes.set(window.view.axes.map(axis => axis.size), 2 * n);
        this.cut(window, image.subarray(n * height * width * 3), width);
      });
      const inputs = { image: { dims: [count, height, width, 3], data: image, type: "uint8" } };
      if (about.input.sized) inputs.size = { dims: [count, 2], data: sizes, type: "int32" };
      encoded.push(await this.run("encode", inputs));
    }
    const scores = encoded.flatMap(({ scores: { dims: [n, c], data } }) =>
      Array.from({ length: n }, (_, i) => data.subarray(i * c, (i + 1) * c)));
    const best = Float32Array.from(this.names, (_, c) => Math.max(...scores.map(x => x[c])));
    return { size: picture.size, views, encoded, scores, best };
  }

  cut({ view: { axes: [rows, columns], flip }, shown: { data, size }, y, x }, to, width) {
    for (let i = 0; i < rows.size; i++)
      for (let j = 0; j < columns.size; j++) {
        const column = flip ? size[1] - 1 - x - j : x + j, from = 3 * ((y + i) * size[1] + column);
        const place = 3 * (i * width + j);
        for (let c = 0; c < 3; c++) to[place + c] = data[from + c];
      }
  }

  // Of a picture that was looked at: { labels, places, shares }, maps of `size`.
  // `choice`: k; candidates (bool for each class); always (ids that are kept).
  async segment(seen, { k, candidates, always = [], top = 1, size = seen.size }) {
    const one = this.about.selection.scope === "per_image";
    const chosen = (one ? [seen.best] : seen.scores).map(x => this.select(x, k, candidates, always));
    const ids = seen.scores.map((_, n) => chosen[one ? 0 : n]), logits = [];
    let next = 0;
    for (const each of seen.encoded) {
      const count = each.scores.dims[0], mine = ids.slice(next, next += count), dims = [count, this.ranks];
      const { logits: { dims: shape, data } } = await this.run("classify", { ...each,
        class_ids: { dims, type: "int32", data: Int32Array.from(mine.flatMap(x => x.ids)) },
        valid: { dims, type: "bool", data: Uint8Array.from(mine.flatMap(x => x.valid)) } });
      const length = data.length / count;
      for (let n = 0; n < count; n++)
        logits.push({ shape: shape.slice(1), data: data.subarray(n * length, (n + 1) * length) });
    }
    const union = [...new Set(ids.flatMap(x => x.ids.filter((_, i) => x.valid[i])))];
    union.sort((a, b) => seen.best[b] - seen.best[a] || a - b);
    // The rank of each label of the union in each window, -1 where it was not selected.
    const ranks = ids.map(x => union.map(id => x.ids.findIndex((other, i) => other === id && x.valid[i])));
    const views = seen.views.map(view => ({ ...view, axes: view.axes.map((axis, n) => ({ ...axis, length: size[n] })) }));
    const maps = this.likeliest(size, union.length, Math.min(top, union.length), this.regions
      ? this.regionRows(views, seen, logits, ranks) : this.pixelRows(views, logits, ranks), views.length);
    const counts = new Float64Array(union.length);
    for (const place of maps.places.subarray(0, size[0] * size[1])) counts[place]++;
    const labels = union.map((id, rank) => ({ name: this.names[id], class_id: id, rank,
      score: sigmoid(seen.best[id]), pixel_share: counts[rank] / (size[0] * size[1]) }));
    return { labels, ...maps };
  }

  // Class ids by falling score, as many as there are ranks, and which of them are valid.
  select(scores, k, candidates, always) {
    const { minimum_score: least, cumulative, name } = this.about.selection;
    const value = id => candidates[id] ? scores[id] : -Infinity;
    const order = Array.from(scores.keys()).sort((a, b) => value(b) - value(a) || a - b);
    const ids = order.slice(0, this.ranks), total = order.reduce((sum, id) => sum + sigmoid(value(id)), 0);
    let before = 0;
    const valid = ids.map((id, rank) => {
      const probability = sigmoid(value(id));
      const enough = name !== "top_k" || rank === 0 || always.includes(id) ||
        probability >= least && (cumulative >= 1 || before < cumulative * total);
      before += probability;
      return value(id) > -Infinity && rank < Math.max(k, 1) && enough;
    });
    return { ids, valid };
  }

  // Fills scores [W U] of a row of pixels; averaged over views.
  pixelRows(views, logits, ranks) {
    const count = ranks[0].length, [h, w, channels] = logits[0].shape, line = [];
    let next = 0;
    const grids = views.map(({ axes }) => {
      const [down, across] = axes.map(axis => axis.starts.length), width = across * w;
      const grid = new Float32Array(down * h * width * count);
      for (let a = 0; a < down; a++)
        for (let b = 0; b < across; b++, next++)
          for (let y = 0; y < h; y++)
            for (let x = 0; x < w; x++) {
              const from = (y * w + x) * channels, to = ((a * h + y) * width + b * w + x) * count;
              for (let u = 0; u < count; u++) {
                const rank = ranks[next][u];
                grid[to + u] = rank < 0 ? UNSELECTED : logits[next].data[from + rank];
              }
            }
      const [rows, columns] = axes.map(resampling.stitched);
      return { grid, rows, columns, length: width * count };
    });
    return (y, scores) => {
      grids.forEach(({ grid, rows, columns, length }, n) => {
        const values = weighted(rows, y, grid, length, line[n] ||= new Float32Array(length));
        const part = grids.length > 1 ? new Float32Array(count) : null;
        for (let x = 0, to = 0; to < scores.length; x++, to += count) {
          if (!part) { weighted(columns, x, values, count, scores.subarray(to, to + count)); continue; }
          softmax(weighted(columns, x, values, count, part));
          for (let u = 0; u < count; u++) scores[to + u] = (n ? scores[to + u] : 0) + part[u] / grids.length;
        }
      });
    };
  }

  // The same of regions: a label's probability times its mask's, over all queries.
  regionRows(views, seen, logits, ranks) {
    const count = ranks[0].length, [queries, columns] = logits[0].shape;
    const masks = seen.encoded.flatMap(({ mask_logits: { dims: [n, q, h, w], data } }) =>
      Array.from({ length: n }, (_, i) => {
        const mask = new Float32Array(h * w * q), from = i * q * h * w;
        for (let j = 0; j < q; j++)
          for (let cell = 0; cell < h * w; cell++) mask[cell * q + j] = data[from + j * h * w + cell];
        return { mask, length: w * q };
      }));
    const ways = views.flatMap(({ axes }) => {
      const [down, across] = axes.map(resampling.single);
      return down.flatMap(row => across.map(column => ({ row, column })));
    });
    const windows = ways.map((way, n) => {
      const table = new Float32Array(queries * count);
      for (let q = 0; q < queries; q++) {
        const all = softmax(logits[n].data.slice(q * columns, (q + 1) * columns));
        ranks[n].forEach((rank, u) => { if (rank >= 0) table[q * count + u] = all[rank]; });
      }
      return { ...way, ...masks[n], table, line: new Float32Array(masks[n].length) };
    });
    const inside = new Float32Array(queries);
    return (y, scores) => {
      scores.fill(0);
      for (const { row, column, mask, length, table, line } of windows) {
        if (!row.shares[y]) continue;
        weighted(row.rows, y, mask, length, line);
        for (let x = 0, to = 0; to < scores.length; x++, to += count) {
          const share = row.shares[y] * column.shares[x] / views.length;
          if (!share) continue;
          weighted(column.rows, x, line, queries, inside);
          for (let q = 0; q < queries; q++) {
            const value = share * sigmoid(inside[q]);
            for (let u = 0; u < count; u++) scores[to + u] += value * table[q * count + u];
          }
        }
      }
    };
  }

  // `places` [top H W] of the likeliest labels in the union, `shares` in per cent.
  likeliest([height, width], count, top, rowOf, views) {
    const places = new Uint16Array(top * height * width), shares = new Uint8Array(top * height * width);
    const row = new Float32Array(width * count);
    for (let y = 0; y < height; y++) {
      rowOf(y, row);
      for (let x = 0; x < width; x++) {
        const scores = row.subarray(x * count, (x + 1) * count);
        if (this.regions) {
          const total = Math.max(scores.reduce((a, b) => a + b, 0), 1e-30);
          for (let u = 0; u < count; u++) scores[u] /= total;
        } else if (views === 1) softmax(scores);
        for (let n = 0; n < top; n++) {
          let best = 0;
          for (let u = 1; u < count; u++) if (scores[u] > scores[best]) best = u;
          places[(n * height + y) * width + x] = best;
          shares[(n * height + y) * width + x] = Math.round(100 * scores[best]);
          scores[best] = -1;
        }
      }
    }
    return { places, shares };
  }
}

// Sum of some rows of `values`, each of `length` numbers.
function weighted({ start, cell, weight }, row, values, length, to) {
  to.fill(0);
  for (let i = start[row]; i < start[row + 1]; i++) {
    const from = cell[i] * length, w = weight[i];
    for (let j = 0; j < length; j++) to[j] += w * values[from + j];
  }
  return to;
}

function softmax(x) {
  let most = -Infinity, total = 0;
  for (const value of x) most = Math.max(most, value);
  for (let i = 0; i < x.length; i++) total += x[i] = Math.exp(x[i] - most);
  for (let i = 0; i < x.length; i++) x[i] /= total;
  return x;
}
