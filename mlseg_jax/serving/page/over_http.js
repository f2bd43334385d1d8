// What the page asks for, from the server that it came from.
const backend = (() => {
  async function ask(path, options = {}) {
    let answer;
    try { answer = await fetch(path, options); }
    catch { throw new Error("The server does not answer; is it still running?"); }
    if (!answer.ok) {
      const said = await answer.json().catch(() => ({}));
      const error = new Error(said.error || `The server says ${answer.status}.`);
      error.status = answer.status;
      throw error;
    }
    return answer;
  }

  function query(choice) {
    const values = new URLSearchParams();
    for (const [key, value] of Object.entries(choice)) {
      if (Array.isArray(value)) for (const id of value) values.append(key, "#" + id);
      else values.append(key, value);
    }
    return values;
  }

  async function unpack(text, kind) {
    const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new kind(await new Response(stream).arrayBuffer());
  }

  async function result(answer) {
    const { top, ...found } = await answer.json();
    return { ...found, places: await unpack(top.places, Uint16Array),
      shares: await unpack(top.percent, Uint8Array) };
  }

  return {
    where: "It stays between this page and the server that it came from.",
    model: async () => (await ask("/model")).json(),
    // A file, encoded and kept; `picture` of the result names it from then on.
    open: async (file, choice) => result(await ask(`/pictures?${query(choice)}`, {
      method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } })),
    // Another selection for it. An error of status 410: it is no longer kept.
    select: async (picture, choice) => result(await ask(`/pictures/${picture}?${query(choice)}`)),
    // Sends the file where it is not kept, or no longer.
    mask: async (file, picture, choice) => {
      const path = picture ? `/pictures/${picture}` : "/segment", headers = { Accept: "image/png" };
      const body = picture ? {} : { method: "POST", body: file };
      if (!picture) headers["Content-Type"] = "application/octet-stream";
      try { return await (await ask(`${path}?${query(choice)}`, { ...body, headers })).blob(); }
      catch (error) {
        if (picture && error.status === 410) return backend.mask(file, null, choice);
        throw error;
      }
    },
    labels: async (text, limit) => (await (await ask(
      `/labels?limit=${limit}&search=${encodeURIComponent(text)}`)).json()).labels,
    example: async i => (await ask(`/examples/${i}`)).blob(),
  };
})();
