// The options of one decode, as fields of a request.
//
//   new Setting("A").body       // { schedule: { gaussian: { window: 32 } }, cache: "dual" }

const PARAMETERS = ["k", "scale", "count", "window"]; // of a schedule
const SUFFIXES = { none: "full suffix", gaussian: "DPad Gaussian", uniform: "DPad uniform" };

export class Setting {
  constructor(name) {
    this.element = document.getElementById("setting-of").content.firstElementChild.cloneNode(true);
    this.element.querySelector("legend").textContent = name;
    this.schedule = this.element.querySelector("[name=schedule]");
    this.schedule.addEventListener("change", () => this.reveal());
    this.reveal();
  }

  /** Choose how the masked suffix is dropped, where nobody has. */
  suggest(schedule) {
    if (!this.schedule.value) this.schedule.value = schedule;
    this.reveal();
  }

  /** Only the parameters of the schedule that is chosen. */
  reveal() {
    for (const label of this.element.querySelectorAll("[data-for]")) {
      label.hidden = !label.dataset.for.split(" ").includes(this.schedule.value);
      label.querySelector("input").disabled = label.hidden;
    }
  }

  /** What was filled in; the rest is the preset's. */
  get body() {
    const filled = [...this.element.querySelectorAll("input, select")].filter((each) => !each.disabled && each.value);
    const values = filled.map((each) => [each.name, each.type === "number" ? Number(each.value) : each.value]);
    const body = Object.fromEntries(values.filter(([name]) => !PARAMETERS.includes(name)));
    const parameters = Object.fromEntries(values.filter(([name]) => PARAMETERS.includes(name)));
    if (body.schedule && body.schedule !== "none") body.schedule = { [body.schedule]: parameters };
    return body;
  }

  /** The same in a few words. */
  get summary() {
    const { schedule, ...rest } = this.body;
    const parameters = schedule?.[this.schedule.value] ?? {};
    const given = Object.entries({ ...parameters, ...rest });
    const words = given.map(([name, value]) => `${name.replace("_", " ")} ${value}`);
    return [SUFFIXES[this.schedule.value] ?? "", ...words].filter(Boolean).join(", ");
  }
}
