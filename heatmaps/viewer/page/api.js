// Questions to the server that this page came from, and nobody else.

let secret = null;

/** What the server says, or an Error with its one sentence. */
async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The viewer does not answer. Was it ended?");
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error(said.error || `The viewer answers ${answer.status}`);
  }
  return answer;
}

export async function getJson(path, signal) {
  return (await ask(path, { signal })).json();
}

export async function postJson(path, content) {
  secret ??= (await getJson("/api/session")).token;
  const headers = { "Content-Type": "application/json", "X-Microtome-Token": secret };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(content) })).json();
}

/** A channel: {columns, rows, scale, values}; see heatmaps/viewer/layers.py. */
export async function getRaster(slide, layer, channel, rank, signal) {
  const path = `/api/slides/${slide}/layers/${layer}/${channel}?rank=${rank ? 1 : 0}`;
  const bytes = await (await ask(path, { signal })).arrayBuffer();
  const length = new DataView(bytes).getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  return { ...head, values: new Float32Array(bytes, 4 + length) };
}
