// Outlines in level-0 pixels, drawn as lines of the same width at every zoom.

const rgb = (colour, alpha = 1) => `rgb(${colour[0]} ${colour[1]} ${colour[2]} / ${alpha})`;

/** Make the path of an outline once; it is drawn at every frame. */
export function withPath(shape) {
  const path = new Path2D();
  for (const ring of shape.rings) {
    ring.forEach(([x, y], place) => (place ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return { ...shape, path };
}

/** Left, top, right and bottom of a shape. */
export function extent(shape) {
  const points = shape.rings.flat();
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  const least = (numbers) => numbers.reduce((a, b) => Math.min(a, b));
  const most = (numbers) => numbers.reduce((a, b) => Math.max(a, b));
  return [least(xs), least(ys), most(xs), most(ys)];
}

/** Draw a shape: its line, and a little of its colour inside. */
export function drawShape(context, frame, shape, { filled = 0, width = 2, dashed = false } = {}) {
  context.save();
  const [x, y] = frame.toScreen(0, 0);
  context.transform(frame.scaleX, 0, 0, frame.scaleY, x, y);
  context.lineJoin = "round";
  context.lineWidth = (width + 2) / frame.scaleX; // a light border, to be seen on any colour
  context.strokeStyle = "rgb(255 255 255 / 65%)";
  context.stroke(shape.path);
  context.lineWidth = width / frame.scaleX;
  if (dashed) context.setLineDash([6 / frame.scaleX, 4 / frame.scaleX]);
  context.strokeStyle = rgb(shape.colour);
  if (filled) {
    context.fillStyle = rgb(shape.colour, filled);
    context.fill(shape.path, "evenodd");
  }
  context.stroke(shape.path);
  context.restore();
}

/** A frame around a tile. */
export function drawBox(context, frame, [x, y, width, height], colour, lineWidth) {
  const [left, top] = frame.toScreen(x, y);
  const [right, bottom] = frame.toScreen(x + width, y + height);
  context.save();
  context.lineWidth = lineWidth + 2;
  context.strokeStyle = "rgb(255 255 255 / 80%)";
  context.strokeRect(left, top, right - left, bottom - top);
  context.lineWidth = lineWidth;
  context.strokeStyle = colour;
  context.strokeRect(left, top, right - left, bottom - top);
  context.restore();
}
