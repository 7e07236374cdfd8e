// One decode on the page: its canvas, the passes to go through, and the numbers beside it.
//
//   const panel = new Panel("A");
//   panel.begin("full suffix", [{ first: 0, length: 64 }]);
//   panel.start();
//   panel.take(revision, texts);
//   panel.end("...");

import { Canvas } from "./canvas.js";
import { Trajectory } from "./trajectory.js";

const PLAY = 160; // ms between two passes that are played

export class Panel {
  constructor(name) {
    this.element = document.getElementById("panel-of").content.firstElementChild.cloneNode(true);
    this.name = name;
    this.find = (selector) => this.element.querySelector(selector);
    this.slider = this.find("input");
    this.canvas = new Canvas(this.find(".canvas"), (place) => this.choose(place));
    this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
    this.find(".play").addEventListener("click", () => this.play());
    this.find(".canvas").addEventListener("keydown", (event) => this.key(event));
    this.title("");
  }

  title(what) {
    this.find("h2").textContent = [this.name, what].filter(Boolean).join(" · ");
  }

  /** A decode of `parts`, runs of cells and the texts between them, begins. */
  begin(what, parts) {
    this.stop();
    this.title(what);
    this.parts = parts;
    this.trajectory = new Trajectory(parts.filter((part) => typeof part !== "string").length);
    this.place = undefined;
    this.find(".told").textContent = "";
    this.fail("");
    this.status("");
    this.canvas.layOut(parts);
    this.show(0);
  }

  /** Its request is sent. */
  start() {
    this.status("Waiting for the first pass …");
    this.element.setAttribute("aria-busy", "true");
    this.began = performance.now();
  }

  /** The server tells where the blanks are among the places. */
  placeBlanks(places) {
    const blanks = places.values();
    this.parts = this.parts.map((part) => {
      if (typeof part === "string") return part;
      const [first, length] = blanks.next().value;
      return { first, length };
    });
    this.canvas.layOut(this.parts);
    this.show(0);
  }

  /** A pass has ended. Who looks at the last one follows. */
  take(revision, texts) {
    const follows = this.shown === this.trajectory.passes.length;
    this.trajectory.take(revision, texts, (performance.now() - this.began) / 1000);
    this.status("Decoding …");
    if (follows) this.show(this.trajectory.passes.length);
    else this.range();
  }

  /** What the whole decode came to, in words; `tokens` are those of the answer. */
  measure(tokens) {
    const { number, seconds } = this.trajectory.passes.at(-1);
    const each = `${(tokens / number).toFixed(1)} a pass, ${(tokens / seconds).toFixed(1)} a second`;
    return `${tokens} tokens in the answer, ${each}`;
  }

  /** It is over; `status` says how. */
  end(status) {
    this.element.removeAttribute("aria-busy");
    this.status(status);
  }

  status(text) {
    this.find(".status").textContent = text;
  }

  /** An error in words, or none; `status` is what the server answered. */
  fail(text, status = 0) {
    this.failed = status;
    this.find(".error").textContent = text;
    this.find(".error").hidden = !text;
  }

  range() {
    const last = this.trajectory.passes.length;
    this.slider.max = last;
    this.slider.value = this.shown;
    this.slider.disabled = this.find(".play").disabled = last === 0;
    this.find("output").textContent = `${this.shown} of ${last}`;
  }

  /** The state after `count` passes. */
  show(count) {
    if (!this.trajectory) return;
    this.shown = Math.min(Math.max(count, 0), this.trajectory.passes.length);
    this.range();
    const state = this.trajectory.at(this.shown);
    this.state = state;
    this.canvas.draw(state);
    const all = Object.keys(this.canvas.cells);
    const decided = all.filter((place) => state.cells[place]).length;
    this.slider.setAttribute("aria-valuetext", `after pass ${state.number}: ${decided} tokens decided`);
    this.find(".canvas").setAttribute(
      "aria-label",
      `Canvas after pass ${state.number}: ${decided} of ${all.length} tokens decided. ` +
        "Left and right: passes. Up and down: tokens. Space: play.",
    );
    this.find("[data-number=passes]").textContent = state.number;
    this.find("[data-number=decided]").textContent = decided;
    this.find("[data-number=seconds]").textContent = state.seconds.toFixed(2);
    this.find("[data-number=speed]").textContent = state.seconds ? (decided / state.seconds).toFixed(1) : "–";
    this.write(state.texts);
    if (this.place !== undefined) this.choose(this.place);
  }

  /** The text that is final: what was written, marked, and what was given around it. */
  write(texts) {
    const left = texts.values();
    const nodes = this.parts.map((part) => {
      if (typeof part === "string") return document.createTextNode(part);
      const written = document.createElement("ins");
      written.textContent = left.next().value;
      return written;
    });
    this.find(".text").replaceChildren(...nodes);
    this.find(".text").classList.toggle("given-around", nodes.length > 1);
  }

  /** Tell of one cell. */
  choose(place) {
    this.place = place;
    this.canvas.mark(place);
    const commit = this.state.cells[place];
    this.find(".told").textContent = commit
      ? `Place ${place}: ${JSON.stringify(commit.text)}, token ${commit.token}, ` +
        `confidence ${commit.confidence.toFixed(3)}, decided in pass ${commit.pass}`
      : `Place ${place}: not decided yet`;
  }

  key(event) {
    if (!this.trajectory || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.trajectory.passes.length;
    const places = Object.keys(this.canvas.cells).map(Number);
    const beside = (step) => {
      const next = this.place === undefined ? 0 : places.indexOf(this.place) + step;
      this.choose(places[Math.min(Math.max(next, 0), places.length - 1)]);
    };
    const keys = {
      ArrowLeft: () => this.show(this.shown - 1),
      ArrowRight: () => this.show(this.shown + 1),
      Home: () => this.show(0),
      End: () => this.show(last),
      ArrowUp: () => beside(-1),
      ArrowDown: () => beside(1),
      " ": () => this.play(),
    };
    if (!(event.key in keys)) return;
    event.preventDefault();
    if (event.key !== " ") this.stop();
    keys[event.key]();
  }

  /** Go through the passes, from the first if the last is shown; or stop that. */
  play() {
    if (this.timer) {
      this.stop();
      return;
    }
    if (this.shown === this.trajectory.passes.length) this.show(0);
    this.find(".play").textContent = "Pause";
    this.timer = setInterval(() => {
      this.show(this.shown + 1);
      if (this.shown === this.trajectory.passes.length) this.stop();
    }, PLAY);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = undefined;
    this.find(".play").textContent = "Play";
  }
}
