// The canvas as it is drawn: a cell for each place, shaded by confidence, and given text between them.
//
//   const canvas = new Canvas(element, (place) => ...);
//   canvas.layOut([{ first: 0, length: 64 }]);       // or texts and blanks: ["Tom has ", { first: 0, length: 4 }, "."]
//   canvas.draw(trajectory.at(3));

export class Canvas {
  /** `chosen(place)` is called when someone points at a cell. */
  constructor(element, chosen) {
    this.element = element;
    this.cells = [];
    this.parts = [];
    const point = (event) => event.target.dataset.place !== undefined && chosen(Number(event.target.dataset.place));
    element.addEventListener("pointerover", point);
    element.addEventListener("click", point);
  }

  /** Begin anew with `parts`: given texts, and runs of cells. */
  layOut(parts) {
    this.cells = [];
    this.parts = parts;
    this.element.replaceChildren(
      ...parts.flatMap((part) => {
        if (typeof part === "string") return part ? [given(part)] : [];
        return Array.from({ length: part.length }, (_, each) => (this.cells[part.first + each] = cell(part.first + each)));
      }),
    );
  }

  /** Show a state. What it decided behind the cells that there are gets cells; not in a template, where none is read. */
  draw(state) {
    if (this.parts.length === 1) {
      while (this.cells.length < state.cells.length) {
        const more = cell(this.cells.length);
        this.cells.push(more);
        this.element.append(more);
      }
    }
    this.cells.forEach((each, place) => fill(each, state.cells[place], state.latest));
  }

  /** Mark the cell that is told of. */
  mark(place) {
    this.cells.forEach((each, own) => each.classList.toggle("marked", own === place));
  }
}

function given(text) {
  const element = document.createElement("span");
  element.className = "given";
  element.textContent = text;
  return element;
}

function cell(place) {
  const element = document.createElement("span");
  element.className = "cell";
  element.dataset.place = place;
  fill(element, undefined, 0);
  return element;
}

function fill(element, commit, latest) {
  const fresh = commit !== undefined && commit.index === latest;
  if (element.textContent && element.commit === commit && element.fresh === fresh) return;
  Object.assign(element, { commit, fresh });
  element.textContent = commit ? commit.text.replaceAll("\n", "↵") || "∅" : "·";
  element.classList.toggle("mask", !commit);
  element.classList.toggle("decided", commit !== undefined);
  element.classList.toggle("special", commit !== undefined && /^<\|?[^<>\s]+\|?>$/.test(commit.text));
  element.classList.toggle("new", fresh);
  element.style.setProperty("--sure", commit ? commit.confidence.toFixed(3) : "0");
}
