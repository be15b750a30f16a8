// The address of a view: everything that is seen is in the part after #, which no server gets to see.

/** The view that the address holds; what it does not say is missing. */
export function readLink() {
  const found = new URLSearchParams(location.hash.slice(1));
  const number = (name) => {
    const value = Number.parseFloat(found.get(name));
    return Number.isFinite(value) ? value : undefined;
  };
  return {
    slide: found.get("slide") ?? undefined, model: found.get("model") ?? undefined, channel: found.get("channel") ?? undefined,
    scale: found.get("scale") ?? undefined,
    x: number("x"), y: number("y"), zoom: number("zoom"),
    opacity: number("opacity"), threshold: number("below"), low: number("low"), high: number("high"),
    rank: found.has("rank") ? found.get("rank") === "1" : undefined,
    grey: found.has("grey") ? found.get("grey") === "1" : undefined,
    heat: found.has("heat") ? found.get("heat") === "1" : undefined,
  };
}

/** Put a view into the address, without a step in the browser's history, and without the secret. */
export function writeLink(view) {
  const said = new URLSearchParams();
  for (const [name, value] of Object.entries(view)) {
    if (value !== undefined && value !== null) said.set(name, String(value));
  }
  history.replaceState(null, "", `${location.pathname}#${said}`);
}
