// Text with blanks, typed around them: a text area, a blank of so many tokens, a text area, and so on.
//
//   const template = new Template(element, ["Tom has ", { tokens: 4 }, " books."]);
//   template.parts          // the same, as it was edited

export class Template {
  constructor(element, parts) {
    this.element = element;
    element.replaceChildren(...parts.map((part) => (typeof part === "string" ? text(part) : this.blank(part.tokens))));
    element.addEventListener("focusin", (event) => event.target.matches("textarea") && (this.typed = event.target));
    this.label();
  }

  /** Texts and blanks by turns, a text first and last. */
  get parts() {
    return [...this.element.children].map((part) =>
      part.matches("textarea") ? part.value : { tokens: Number(part.querySelector("input").value) },
    );
  }

  /** Put a blank where the cursor is, or was; what follows it goes behind the blank. */
  insert() {
    const before = this.typed?.isConnected ? this.typed : this.element.lastElementChild;
    const after = text(before.value.slice(before.selectionEnd));
    before.value = before.value.slice(0, before.selectionStart);
    const blank = this.blank(8);
    before.after(blank, after);
    this.label();
    blank.querySelector("input").select();
  }

  /** Take a blank away and join the texts around it. */
  remove(blank) {
    const [before, after] = [blank.previousElementSibling, blank.nextElementSibling];
    const cursor = before.value.length;
    before.value += after.value;
    after.remove();
    blank.remove();
    this.label();
    before.focus();
    before.setSelectionRange(cursor, cursor);
  }

  blank(tokens) {
    const element = document.createElement("span");
    element.className = "blank";
    const label = document.createElement("label");
    const number = document.createElement("input");
    Object.assign(number, { type: "number", min: 1, step: 1, required: true, value: tokens });
    label.append("Blank of ", number, " tokens");
    const button = document.createElement("button");
    Object.assign(button, { type: "button", textContent: "×" });
    button.addEventListener("click", () => this.remove(element));
    element.append(label, button);
    return element;
  }

  /** Names for who does not see it; the last blank cannot be removed. */
  label() {
    const blanks = this.element.querySelectorAll(".blank");
    blanks.forEach((blank, number) => {
      blank.querySelector("button").ariaLabel = `Remove blank ${number + 1}`;
      blank.querySelector("button").disabled = blanks.length === 1;
    });
    this.element.querySelectorAll("textarea").forEach((area, number) => (area.ariaLabel = `Text ${number + 1}`));
  }
}

function text(value) {
  const area = document.createElement("textarea");
  area.rows = 2;
  area.value = value;
  return area;
}
