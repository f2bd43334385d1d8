// A video is a strip of its frames, each a picture of its own; what is chosen holds for all.
const strip = (() => {
  const FRAMES = 16, LONGEST = 1024, SMALL = 160;
  let frames = [], turn = 0, updating = false;

  const event = (element, name) => new Promise((done, failed) => {
    element.addEventListener(name, done, { once: true });
    element.addEventListener("error", () => failed(new Error("This browser cannot play this video.")), { once: true });
  });

  function close() {
    turn++;
    frames = [];
    $("strip").replaceChildren();
    $("strip").hidden = true;
  }

  async function open(file) {
    close();
    say(null);
    $("busy").hidden = false;
    const mine = turn, video = make("video"), address = URL.createObjectURL(file);
    Object.assign(video, { muted: true, preload: "auto", src: address });
    try {
      await event(video, "loadeddata");
      if (!Number.isFinite(video.duration)) throw new Error("This video does not say how long it is; save it anew.");
      for (let n = 0; n < FRAMES; n++) {
        const time = (n + 0.5) * video.duration / FRAMES, there = event(video, "seeked");
        video.currentTime = time;
        await there;
        const frame = await take(video, time);
        if (mine !== turn) return;
        frames.push(frame);
        $("strip").append(frame.button);
        $("strip").hidden = false;
        if (n === 0) await choose(frame, false);
      }
      await update();
    } catch (error) { if (mine === turn) say(error.message); }
    finally { URL.revokeObjectURL(address); if (!state.running) $("busy").hidden = true; }
  }

  async function take(video, time) {
    const factor = Math.min(1, LONGEST / Math.max(video.videoWidth, video.videoHeight)), whole = make("canvas");
    whole.width = Math.round(video.videoWidth * factor);
    whole.height = Math.round(video.videoHeight * factor);
    whole.getContext("2d").drawImage(video, 0, 0, whole.width, whole.height);
    const blob = await new Promise(done => whole.toBlob(done, "image/jpeg", 0.95));
    const button = make("button"), canvas = make("canvas"), scale = SMALL / Math.max(whole.width, whole.height);
    canvas.width = Math.max(1, Math.round(whole.width * scale));
    canvas.height = Math.max(1, Math.round(whole.height * scale));
    canvas.getContext("2d").drawImage(whole, 0, 0, canvas.width, canvas.height);
    const seconds = time.toFixed(1), frame = { time, button, canvas, picture: null, said: null,
      file: new File([blob], `frame_${seconds}s.jpg`, { type: "image/jpeg" }), still: await createImageBitmap(canvas) };
    button.type = "button";
    button.setAttribute("aria-label", `Frame at ${seconds} seconds`);
    button.append(canvas, make("span", "", `${seconds} s`));
    button.addEventListener("click", () => choose(frame, true));
    return frame;
  }

  async function choose(frame, keep) {
    for (const each of frames) each.button.setAttribute("aria-current", each === frame);
    await openPicture(frame.file, { keep, picture: frame.picture });
    if (state.file === frame.file) frame.picture = state.picture;
  }

  // Small results of all frames, one after the other, where what is chosen has changed.
  async function update() {
    if (updating) return;  // It looks at all frames until nothing has changed.
    updating = true;
    try { while (await updateOnce()); }
    catch (error) { say(error.message); }
    finally { updating = false; }
  }

  async function updateOnce() {
    const mine = turn, wanted = () => JSON.stringify([choice({ top: 1, longest: SMALL }), $("strength").value]);
    for (const frame of frames) {
      const said = wanted(), [values] = JSON.parse(said);
      if (frame.said === said) continue;
      let found = null;
      if (frame.picture) found = await backend.select(frame.picture, values).catch(error => { if (error.status !== 410) throw error; });
      found ||= await backend.open(frame.file, values);
      if (mine !== turn) return true;
      Object.assign(frame, { picture: found.picture || frame.picture, said });
      paint(frame, found);
      if (wanted() !== said) return true;
    }
    return false;
  }

  function paint({ canvas, still, button, time }, { places, labels, width, height }) {
    const layer = new OffscreenCanvas(width, height), inner = layer.getContext("2d");
    const data = inner.createImageData(width, height), colours = labels.map(x => parseInt(x.colour.slice(1), 16));
    for (let i = 0; i < width * height; i++) {
      const c = colours[places[i]];
      data.data.set([c >> 16, c >> 8 & 255, c & 255, Math.round(2.55 * $("strength").value)], 4 * i);
    }
    inner.putImageData(data, 0, 0);
    const context = canvas.getContext("2d");
    context.drawImage(still, 0, 0);
    context.drawImage(layer, 0, 0, canvas.width, canvas.height);
    const seen = labels.filter(x => x.pixel_share > 0).slice(0, 4).map(x => x.name).join(", ");
    button.setAttribute("aria-label", `Frame at ${time.toFixed(1)} seconds: ${seen}`);
  }

  return { open, close, update, get length() { return frames.length; } };
})();
