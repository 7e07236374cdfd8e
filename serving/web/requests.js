// The three kinds of requests: where they go, what they hold, and how their events are read.
//
//   const kind = KINDS.infill;
//   kind.path, kind.body(form), kind.parts(form), kind.texts(choice)
//
// `form` has prompt, template and tokens.

export const KINDS = {
  chat: {
    path: "v1/chat/completions",
    body: (form) => ({ messages: [{ role: "user", content: form.prompt }], max_tokens: form.tokens }),
    parts: (form) => [{ first: 0, length: form.tokens }],
    texts: (choice) => (choice.delta.content ? [[0, choice.delta.content]] : []),
  },
  completion: {
    path: "v1/completions",
    body: (form) => ({ prompt: form.prompt, max_tokens: form.tokens }),
    parts: (form) => [{ first: 0, length: form.tokens }],
    texts: (choice) => (choice.text ? [[0, choice.text]] : []),
  },
  infill: {
    path: "v1/infill",
    body: (form) => ({ template: form.template.filter((part) => part !== "") }),
    parts: (form) => {
      let first = 0; // until the server says where the blanks are
      return form.template.map((part) => {
        if (typeof part === "string") return part;
        first += part.tokens;
        return { first: first - part.tokens, length: part.tokens };
      });
    },
    texts: (choice) => choice.fills.map(({ blank, text }) => [blank, text]),
  },
};
