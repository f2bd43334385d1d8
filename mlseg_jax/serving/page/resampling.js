// Between windows and pictures: mlseg_jax/export/resampling.py once more, for browsers.
// Rows of its matrices have a few numbers that are not zero; here they are lists of those:
// { start: Int32Array [n + 1], cell: [...], weight: [...] }.
const resampling = (() => {
  const half = x => {  // as Python rounds: halves to the even number
    const low = Math.floor(x);
    return x - low === 0.5 ? low + low % 2 : Math.round(x);
  };

  // How a picture of this height and width is looked at: for each scale and mirror image its
  // size there, and what is needed of rows and of columns.
  function viewsOf(about, size) {
    const views = [];
    for (const scale of about.views.scales) {
      const fitted = fit(about, size, scale);
      if (Math.max(...fitted) > Math.max(2 ** 15, 2 * Math.max(...size)))
        throw new Error("This picture is too long; cut it into shorter parts.");
      for (const flip of about.views.flip ? [false, true] : [false])
        views.push({ size: fitted, flip, axes: [0, 1].map(n => axis(about, size, fitted, n, flip && n === 1)) });
    }
    return views;
  }

  function fit(about, size, scale) {
    const window = about.input.size, base = about.views.base_size.map(x => Math.trunc(x * scale));
    let fitted = size.map(side => Math.max(1, half(side * scale)));
    if (Math.max(...base) > 0) {
      const factor = Math.min(Math.max(...base) / Math.max(...size), Math.min(...base) / Math.min(...size));
      fitted = size.map(side => Math.max(1, Math.trunc(side * factor + 0.5)));
    }
    const factors = window.map((w, n) => w / fitted[n]);
    if (about.views.mode === "whole" && Math.min(...factors) < 1)
      return fitted.map(side => Math.max(1, Math.trunc(side * Math.min(...factors))));
    if (!about.input.sized && Math.max(...factors) > 1)
      return fitted.map((side, n) => Math.max(window[n], Math.trunc(side * Math.max(...factors) + 0.5)));
    return fitted;
  }

  function axis(about, size, fitted, n, flip) {
    const { input, views } = about, view = fitted[n], window = input.size[n], stride = views.stride[n];
    const real = Math.min(window, view), seen = Math.ceil(real / input.multiple) * input.multiple;
    const count = Math.floor(Math.max(view - window + stride - 1, 0) / stride) + 1;
    const starts = Array.from({ length: count }, (_, i) => Math.max(Math.min(i * stride, view - real), 0));
    const canvas = input.grid[n], cells = input.sized ? input.cells[n][seen] : canvas;
    return { length: size[n], view, starts, size: real, seen, cells, canvas, flip };
  }

  // The two samples of a place among `count`, and the second's weight.
  function taps(place, length, count) {
    if (length === count) return [place, place, 0];
    const scale = Math.fround(Math.fround(count) / Math.fround(length));
    const x = Math.max(0, Math.fround(Math.fround(Math.fround(place + 0.5) * scale) - 0.5));
    const low = Math.floor(x);
    return [Math.min(low, count - 1), Math.min(low + 1, count - 1), x - low];
  }

  function sparse(rows) {
    const start = new Int32Array(rows.length + 1), cell = [], weight = [];
    rows.forEach((row, n) => {
      for (const [c, w] of row) if (w) { cell.push(c); weight.push(w); }
      start[n + 1] = cell.length;
    });
    return { start, cell: Int32Array.from(cell), weight: Float32Array.from(weight) };
  }

  const add = (row, cell, weight) => row.set(cell, (row.get(cell) || 0) + weight);

  function pixels(axis, row) {
    return Array.from({ length: axis.length }, (_, n) => row(axis.flip ? axis.length - 1 - n : n));
  }

  // From the grids of all windows side by side to the picture's pixels; overlaps averaged.
  function stitched(axis) {
    const row = place => {
      const [low, high, fraction] = taps(place, axis.length, axis.view), found = new Map();
      for (const [at, share] of [[low, 1 - fraction], [high, fraction]]) {
        const over = axis.starts.map((start, i) => [start, i])
          .filter(([start]) => start <= at && at < start + axis.size);
        for (const [start, i] of share ? over : []) {
          const [a, b, f] = taps(at - start, axis.size, axis.cells), w = share / over.length;
          add(found, i * axis.canvas + a, w * (1 - f));
          add(found, i * axis.canvas + b, w * f);
        }
      }
      return found;
    };
    return sparse(pixels(axis, row));
  }

  // Of each window, from its grid to the picture's pixels, and its share of every pixel.
  function single(axis) {
    const total = new Float32Array(axis.length);
    const windows = axis.starts.map(start => {
      const shares = new Float32Array(axis.length);
      const rows = pixels(axis, place => {
        const [low, high, fraction] = taps(place, axis.length, axis.view), found = new Map();
        const inside = [[low, 1 - fraction], [high, fraction]]
          .filter(([at, w]) => w && start <= at && at < start + axis.size);
        const share = inside.reduce((sum, [, w]) => sum + w, 0);
        for (const [at, w] of inside) {
          const [a, b, f] = taps(at - start, axis.seen, axis.cells);
          add(found, a, w / share * (1 - f));
          add(found, b, w / share * f);
        }
        found.share = share;
        return found;
      });
      rows.forEach((row, n) => { shares[n] = row.share; total[n] += row.share; });
      return { rows: sparse(rows), shares };
    });
    for (const { shares } of windows) shares.forEach((x, n) => { shares[n] = x / total[n]; });
    return windows;
  }

  // Bilinear between four neighbours, as OpenCV does it for bytes: { data, size } of RGB.
  function resize(picture, size) {
    const { data, size: old } = picture;
    if (old[0] === size[0] && old[1] === size[1]) return picture;
    const [rows, columns] = size.map((length, n) => Array.from({ length }, (_, i) => {
      const place = (i + 0.5) * (old[n] / length) - 0.5, low = Math.floor(place);
      const fraction = Math.fround(low < 0 || low >= old[n] - 1 ? 0 : place - low);
      const at = Math.min(Math.max(low, 0), old[n] - 1);
      return [at, Math.min(at + 1, old[n] - 1), half(Math.fround(1 - fraction) * 2048), half(fraction * 2048)];
    }));
    const result = new Uint8Array(3 * size[0] * size[1]);
    let next = 0;
    for (const [top, bottom, above, below] of rows)
      for (const [left, right, before, after] of columns)
        for (let c = 0; c < 3; c++) {
          const at = (y, x) => data[3 * (y * old[1] + x) + c];
          const upper = at(top, left) * before + at(top, right) * after;
          const lower = at(bottom, left) * before + at(bottom, right) * after;
          result[next++] = ((upper >> 4) * above >> 16) + ((lower >> 4) * below >> 16) + 2 >> 2;
        }
    return { data: result, size };
  }

  return { viewsOf, stitched, single, resize };
})();
