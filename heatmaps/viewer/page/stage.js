// The slide on the screen: OpenSeadragon for its tiles, one canvas above for all that is drawn over it.

/* global OpenSeadragon */
import { byId, fill, make, toast } from "./elements.js";

const POWERS = [1, 2.5, 5, 10, 20, 40]; // objectives; a pixel is 10 microns at 1x by convention
const LENGTHS = [1, 2, 5];

export class Stage {
  /** `draw` paints over the slide; `events` hears of pointer places and clicks in level-0 pixels. */
  constructor({ draw, moved, pointed, clicked }) {
    this.drawOver = draw;
    this.canvas = byId("over");
    this.context = this.canvas.getContext("2d");
    this.facts = null;
    this.viewer = new OpenSeadragon.Viewer({
      element: byId("stage"), prefixUrl: "", drawer: "canvas", showNavigationControl: false,
      showNavigator: true, navigatorPosition: "BOTTOM_RIGHT", navigatorSizeRatio: 0.16,
      animationTime: 0.35, springStiffness: 9, maxZoomPixelRatio: 6, minZoomImageRatio: 0.7, visibilityRatio: 0.3,
      zoomPerScroll: 1.35, gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      imageLoaderLimit: 6, maxImageCacheCount: 300, timeout: 120000, tabIndex: 0,
    });
    this.viewer.addHandler("update-viewport", () => this.redraw());
    this.viewer.addHandler("animation-finish", moved);
    this.viewer.addHandler("resize", () => requestAnimationFrame(() => this.redraw()));
    this.viewer.addHandler("canvas-click", (event) => {
      if (event.quick) clicked(...this.frame().toSlide(event.position.x, event.position.y));
    });
    this.viewer.addHandler("tile-load-failed", () => this.complain());
    byId("stage").addEventListener("pointermove", (event) => {
      const box = this.canvas.getBoundingClientRect();
      if (this.facts) pointed(...this.frame().toSlide(event.clientX - box.left, event.clientY - box.top));
    });
    byId("stage").addEventListener("pointerleave", () => pointed(null, null));
  }

  complain() {
    if (this.complained) return;
    this.complained = true;
    toast("Some parts of this slide cannot be decoded; they are shown as far as coarser levels have them.");
  }

  /** Show a slide; resolves when OpenSeadragon has opened it. */
  open(facts) {
    this.complained = false;
    const { size, coarsest, finest } = facts.picture;
    const source = {
      width: size[0], height: size[1], tileSize: 512, tileOverlap: 0, minLevel: coarsest, maxLevel: finest,
      getTileUrl: (level, x, y) => `/slides/${facts.number}/tiles/${level}/${x}_${y}.jpg`,
    };
    return new Promise((resolve, reject) => {
      this.viewer.addOnceHandler("open", () => {
        this.facts = facts;
        this.zoomButtons();
        this.home(true);
        resolve();
      });
      this.viewer.addOnceHandler("open-failed", () => reject(new Error("The slide cannot be shown.")));
      this.viewer.open(source);
    });
  }

  /** How level-0 positions lie on the screen now. */
  frame() {
    const { viewport } = this.viewer;
    const [width] = this.facts.picture.size;
    const [stepX, stepY] = this.facts.picture.scale;
    const zero = viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
    const one = viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true);
    const scaleX = (one.x - zero.x) / width / stepX;
    const scaleY = (one.x - zero.x) / width / stepY;
    const toSlide = (x, y) => [(x - zero.x) / scaleX, (y - zero.y) / scaleY];
    const [left, top] = toSlide(0, 0);
    const [right, bottom] = toSlide(this.canvas.clientWidth, this.canvas.clientHeight);
    const toScreen = (x, y) => [zero.x + x * scaleX, zero.y + y * scaleY];
    return { scaleX, scaleY, toScreen, toSlide, left, top, right, bottom };
  }

  redraw() {
    if (!this.facts) return;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [this.canvas.clientWidth, this.canvas.clientHeight].map((n) => Math.round(n * ratio));
    if (this.canvas.width !== width || this.canvas.height !== height) Object.assign(this.canvas, { width, height });
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, width, height);
    const frame = this.frame();
    this.drawOver(this.context, frame);
    this.scaleBar(frame);
  }

  clamp([x, y]) {
    const [width, height] = this.facts.slideSize;
    return [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
  }

  // Moving ---------------------------------------------------------------------------------------------

  /** The rectangle of level-0 pixels in OpenSeadragon's units. */
  rectangle(x, y, width, height) {
    const [stepX, stepY] = this.facts.picture.scale;
    const unit = this.facts.picture.size[0];
    return new OpenSeadragon.Rect(x / stepX / unit, y / stepY / unit, width / stepX / unit, height / stepY / unit);
  }

  /** All of the slide, or of its scanned part. */
  home(immediately = false) {
    const [width, height] = this.facts.slideSize;
    const [x, y, w, h] = this.facts.bounds ?? [0, 0, width, height];
    this.viewer.viewport.fitBounds(this.rectangle(x, y, w, h), immediately);
  }

  /** A box in the middle of the screen, with as much around it on each side. */
  jump([x, y, width, height], around = 1.5) {
    const area = this.rectangle(x - width * around, y - height * around, width * (1 + 2 * around), height * (1 + 2 * around));
    this.viewer.viewport.fitBounds(area);
  }

  /** Where we are: the level-0 middle, and level-0 pixels along x per pixel of the screen. */
  view() {
    const frame = this.frame();
    const [x, y] = [(frame.left + frame.right) / 2, (frame.top + frame.bottom) / 2];
    return { x: Math.round(x), y: Math.round(y), zoom: Number((1 / frame.scaleX).toPrecision(5)) };
  }

  /** Go where `view` was. */
  restore({ x, y, zoom }) {
    const { clientWidth, clientHeight } = this.canvas;
    const [stepX, stepY] = this.facts.picture.scale;
    const [width, height] = [clientWidth * zoom, (clientHeight * zoom * stepY) / stepX];
    this.viewer.viewport.fitBounds(this.rectangle(x - width / 2, y - height / 2, width, height), true);
  }

  zoomAt([x, y], factor) {
    const point = this.viewer.viewport.pointFromPixel(new OpenSeadragon.Point(x, y));
    this.viewer.viewport.zoomBy(factor, point);
  }

  /** To the scale of an objective. */
  toPower(power) {
    const { mpp, scale } = this.facts.picture;
    const { x, y } = this.view();
    this.restore({ x, y, zoom: (10 / power / mpp) * scale[0] });
  }

  zoomButtons() {
    const { mpp } = this.facts.picture;
    const powers = mpp ? POWERS.filter((power) => 10 / power >= mpp * 0.5) : [];
    fill(byId("zoom-buttons"), make("button", { title: "Whole slide (0)", onclick: () => this.home() }, "Fit"),
      ...powers.map((power) => make("button", { onclick: () => this.toPower(power) }, `${power}×`)));
  }

  /** A bar of a round length between 60 and 170 pixels. */
  scaleBar(frame) {
    const { mpp, scale } = this.facts.picture;
    const perPixel = (mpp ?? 1) / (frame.scaleX * scale[0]); // microns, or picture pixels, of a pixel of the screen
    let length = 1e-3;
    for (let ten = 1e-3; ten < 1e9; ten *= 10) for (const one of LENGTHS) if (one * ten <= 170 * perPixel) length = one * ten;
    const text = !mpp ? `${length} px` : length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(3))} µm`;
    if (byId("scale-text").textContent !== text) byId("scale-text").textContent = text;
    byId("scale-length").style.width = `${length / perPixel}px`;
  }
}
