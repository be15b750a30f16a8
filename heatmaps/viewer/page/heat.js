// The heatmap: raw scores become colours here, so that every slider answers at once.

/** 256 colours as the four bytes of a pixel, lowest first, from the server's hexadecimal digits. */
export function colourTable(hex) {
  const table = new Uint32Array(256);
  const bytes = new Uint8Array(table.buffer);
  for (let i = 0; i < 256; i += 1) {
    for (let part = 0; part < 3; part += 1) bytes[4 * i + part] = Number.parseInt(hex.substr(6 * i + 2 * part, 2), 16);
    bytes[4 * i + 3] = 255;
  }
  return table;
}

/** One channel of one slide, coloured on a canvas of a pixel for each of its own. */
export class Heat {
  constructor(raster) {
    this.raster = raster;
    this.canvas = document.createElement("canvas");
    this.canvas.width = raster.columns;
    this.canvas.height = raster.rows;
    this.context = this.canvas.getContext("2d");
    this.image = this.context.createImageData(raster.columns, raster.rows);
    this.pixels = new Uint32Array(this.image.data.buffer);
  }

  /** Colour all pixels: from `low` to `high`, nothing below `threshold`, nothing where no tile lies. */
  paint(table, { low, high, threshold }) {
    const { values } = this.raster;
    const { pixels } = this;
    const step = 255 / (high - low);
    for (let i = 0; i < pixels.length; i += 1) {
      const value = values[i];
      if (value >= threshold) { // NaN is not
        const place = (value - low) * step + 0.5;
        pixels[i] = table[place < 0 ? 0 : place > 255 ? 255 : place | 0];
      } else pixels[i] = 0;
    }
    this.context.putImageData(this.image, 0, 0);
  }

  /** Draw what is in view; `frame` turns level-0 positions into pixels of the context. No interpolation. */
  draw(context, frame, opacity) {
    const [scaleX, scaleY] = this.raster.scale;
    const left = Math.max(0, Math.floor(frame.left / scaleX));
    const top = Math.max(0, Math.floor(frame.top / scaleY));
    const right = Math.min(this.raster.columns, Math.ceil(frame.right / scaleX));
    const bottom = Math.min(this.raster.rows, Math.ceil(frame.bottom / scaleY));
    if (right <= left || bottom <= top) return;
    const [x, y] = frame.toScreen(left * scaleX, top * scaleY);
    const [xEnd, yEnd] = frame.toScreen(right * scaleX, bottom * scaleY);
    context.save();
    context.globalAlpha = opacity;
    context.imageSmoothingEnabled = false;
    context.drawImage(this.canvas, left, top, right - left, bottom - top, x, y, xEnd - x, yEnd - y);
    context.restore();
  }
}
