// The page: reads the form, decodes one setting or two, one after the other, and shows them.

import { ApiError, events, modelName } from "./api.js";
import { Template } from "./blanks.js";
import { Panel } from "./panel.js";
import { KINDS } from "./requests.js";
import { Setting } from "./settings.js";

const ENDS = { stop: "The text has ended", length: "All tokens are used", deadline: "The deadline has come" };
const PROMPT = "Tom has 6 books. Emma has 4 fewer books than Tom. How many books do they have together?";
const TEMPLATE = ["Emma has 6 - 4 = ", { tokens: 2 }, " books.\nTogether that is 6 + 2 = ", { tokens: 2 }, " books."];

const at = (id) => document.getElementById(id);
const form = at("ask");
const settings = [new Setting("Options A"), new Setting("Options B")];
const panels = [new Panel("A"), new Panel("B")];
const template = new Template(at("template"), TEMPLATE);
let running; // the AbortController of what is being decoded

at("settings").append(...settings.map((each) => each.element));
at("panels").append(...panels.map((each) => each.element));
at("prompt").value = PROMPT;
arrange();
askForModel();

form.addEventListener("change", arrange);
form.addEventListener("submit", (event) => {
  event.preventDefault();
  decode();
});
at("add-blank").addEventListener("click", () => template.insert());
at("cancel").addEventListener("click", () => running?.abort());
at("compare").addEventListener("change", () => {
  if (at("compare").checked) ["none", "gaussian"].forEach((schedule, each) => settings[each].suggest(schedule));
});
at("key").addEventListener("change", askForModel);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running) form.requestSubmit();
});

/** Show what belongs to the kind of request, and one setting or two. */
function arrange() {
  const infill = form.elements.kind.value === "infill";
  at("template-field").hidden = !infill;
  for (const input of at("template").querySelectorAll("input")) input.disabled = !infill;
  for (const id of ["prompt", "tokens"]) {
    at(`${id}-field`).hidden = infill;
    at(id).disabled = infill;
  }
  const two = at("compare").checked;
  settings[1].element.hidden = panels[1].element.hidden = !two;
  settings[1].element.disabled = !two;
  document.body.classList.toggle("two", two);
}

async function askForModel() {
  try {
    at("model").textContent = await modelName(at("key").value);
    if (panels[0].failed === 401) panels[0].fail("");
  } catch (error) {
    report(panels[0], error);
  }
}

/** Say in words what went wrong, and ask for a key where one is missing. */
function report(panel, error) {
  if (!(error instanceof ApiError)) {
    panel.fail(`This page failed: ${error.message}`);
    throw error;
  }
  if (error.status !== 401) {
    panel.fail(error.message);
    return;
  }
  panel.fail(at("key").value ? "The server does not know this key." : "The server asks for a key; give it above.", 401);
  at("key-field").hidden = false;
  at("key").focus();
}

/** One setting after the other, so that neither takes time from the other. */
async function decode() {
  if (running) return;
  running = new AbortController();
  at("decode").disabled = true;
  at("cancel").disabled = false;
  try {
    const kind = KINDS[form.elements.kind.value];
    const asked = { prompt: at("prompt").value, template: template.parts, tokens: Number(at("tokens").value) };
    const body = { ...kind.body(asked), ...common() };
    const decodes = panels
      .map((panel, each) => ({ panel, body: { ...body, ...settings[each].body }, summary: settings[each].summary }))
      .filter(({ panel }) => !panel.element.hidden);
    for (const { panel, summary } of decodes) panel.begin(summary, kind.parts(asked));
    panels[0].element.scrollIntoView({ block: "nearest" });
    for (const each of decodes) await follow(each.panel, kind, each.body, running.signal);
  } finally {
    running = undefined;
    at("decode").disabled = false;
    at("cancel").disabled = true;
  }
}

function common() {
  const filled = { seed: at("seed").value, deadline_ms: at("deadline").value };
  const numbers = Object.entries(filled).filter(([, value]) => value);
  return {
    ...Object.fromEntries(numbers.map(([name, value]) => [name, Number(value)])),
    revisions: true,
    stream_options: { include_usage: true },
  };
}

/** Decode what `body` asks for, and show it pass by pass. */
async function follow(panel, kind, body, signal) {
  let [reason, usage] = [undefined, undefined];
  if (signal.aborted) {
    panel.end("Cancelled.");
    return;
  }
  panel.start();
  try {
    for await (const event of events(kind.path, body, at("key").value, signal)) {
      at("model").textContent = event.model;
      usage = event.usage ?? usage;
      const [choice] = event.choices;
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      if (choice.blanks) panel.placeBlanks(choice.blanks);
      if (choice.revision) panel.take(choice.revision, kind.texts(choice));
    }
    panel.end(`${ENDS[reason] ?? "It has ended"}: ${panel.measure(usage.completion_tokens)}.`);
  } catch (error) {
    if (signal.aborted) {
      panel.end("Cancelled.");
      return;
    }
    panel.end("");
    report(panel, error);
  }
}
