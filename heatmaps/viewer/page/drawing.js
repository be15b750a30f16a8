// Drawing a region: a rectangle by dragging, a polygon by clicks or freehand.

const NEAR = 10; // pixels of the screen from the first corner that close a polygon
const STEP = 5; // pixels between the corners of a freehand line

/** A tool that calls `done` with level-0 corners when a region is closed. */
export class Drawing {
  constructor(canvas, stage, { done, changed }) {
    Object.assign(this, { canvas, stage, done, changed, kind: null, corners: [], pointer: null });
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    canvas.addEventListener("pointerup", (event) => this.up(event));
    canvas.addEventListener("dblclick", () => this.close());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
  }

  get active() { return this.kind !== null; }

  start(kind) {
    this.stop();
    this.kind = kind;
    this.canvas.classList.add("drawing");
    this.changed();
  }

  stop() {
    Object.assign(this, { kind: null, corners: [], pointer: null, pressed: false });
    this.canvas.classList.remove("drawing");
    this.changed();
  }

  /** Close a polygon; fewer than three corners are no region. */
  close() {
    if (this.kind === "polygon" && this.corners.length >= 3) this.finish(this.corners);
  }

  /** Take the last corner back. */
  back() {
    this.corners.pop();
    this.changed();
  }

  finish(corners) {
    this.stop();
    this.done(corners);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  far(one, other) { return Math.hypot(one[0] - other[0], one[1] - other[1]); }

  screen(corner) { return this.stage.frame().toScreen(...corner); }

  down(event) {
    if (event.button !== 0) return;
    const at = this.place(event);
    this.canvas.setPointerCapture(event.pointerId);
    this.pressed = true;
    this.pointer = at;
    const corner = this.stage.clamp(this.stage.frame().toSlide(...at));
    if (this.kind === "box") this.corners = [corner];
    else if (this.corners.length >= 3 && this.far(at, this.screen(this.corners[0])) < NEAR) this.close();
    else if (!this.corners.length || this.far(at, this.screen(this.corners.at(-1))) > 2) this.corners.push(corner);
    this.changed();
  }

  move(event) {
    const at = this.place(event);
    this.pointer = at;
    if (this.pressed && this.kind === "polygon" && this.corners.length
      && this.far(at, this.screen(this.corners.at(-1))) >= STEP) {
      this.corners.push(this.stage.clamp(this.stage.frame().toSlide(...at)));
      this.freehand = true;
    }
    this.changed();
  }

  up(event) {
    if (!this.pressed) return;
    this.pressed = false;
    const at = this.place(event);
    if (this.kind === "box" && this.corners.length) {
      const [x, y] = this.corners[0];
      const [right, bottom] = this.stage.clamp(this.stage.frame().toSlide(...at));
      if (this.far(at, this.screen([x, y])) > 4) this.finish([[x, y], [right, y], [right, bottom], [x, bottom]]);
      else this.corners = [];
    } else if (this.freehand && this.corners.length > 8
      && this.far(at, this.screen(this.corners[0])) < 2 * NEAR) this.close(); // a line that came back
    this.freehand = false;
    this.changed();
  }

  wheel(event) {
    event.preventDefault();
    this.stage.zoomAt(this.place(event), event.deltaY < 0 ? 1.25 : 0.8);
  }

  /** Draw what is there of the region. */
  draw(context, frame) {
    if (!this.corners.length) return;
    const points = this.corners.map((corner) => frame.toScreen(...corner));
    const ways = [...points];
    if (this.kind === "box" && this.pointer && this.pressed) {
      const [[x, y], [right, bottom]] = [points[0], this.pointer];
      ways.splice(0, ways.length, [x, y], [right, y], [right, bottom], [x, bottom], [x, y]);
    } else if (this.pointer) ways.push(this.pointer);
    context.save();
    context.lineJoin = "round";
    for (const [width, colour] of [[4, "rgb(255 255 255 / 80%)"], [2, "#1a6fa0"]]) {
      context.lineWidth = width;
      context.strokeStyle = colour;
      context.beginPath();
      ways.forEach(([x, y], place) => (place ? context.lineTo(x, y) : context.moveTo(x, y)));
      context.stroke();
    }
    const [first] = points;
    context.fillStyle = "#1a6fa0";
    context.fillRect(first[0] - 4, first[1] - 4, 8, 8);
    context.restore();
  }
}
