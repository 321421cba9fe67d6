"use strict";
// What the page can do beyond being read: filters, and the detail of a token that is pointed at,
// tapped or reached by the arrow keys. All text goes in as text, never as HTML.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const tools = document.querySelector(".tools");
  const detail = document.getElementById("detail");
  const answers = [...document.querySelectorAll(".answer")];
  const names = {
    m: "said by the model itself", n: "from a near answer", c: "from the context",
    k: "from the corpus", u: "from a draft whose source is unknown",
  };
  tools.hidden = false;

  for (const button of tools.querySelectorAll("button[data-source]")) {
    button.addEventListener("click", () => {
      const shown = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!shown));
      root.classList.toggle(`hide-${button.dataset.source}`, shown);
    });
  }

  const search = tools.querySelector("input"), kind = tools.querySelector("select");
  const plural = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
  const found = tools.querySelector(".found");
  const texts = answers.map((answer) =>
    ["h3", ".said"].map((part) => answer.querySelector(part).textContent).join("\n").toLowerCase());
  const filter = () => {
    const wanted = search.value.trim().toLowerCase();
    let number = 0;
    answers.forEach((answer, at) => {
      const fits = (!kind.value || answer.classList.contains(kind.value)) &&
        texts[at].includes(wanted);
      answer.hidden = !fits;
      number += fits;
    });
    found.textContent = `${number} of ${plural(answers.length, "answer")}`;
  };
  search.addEventListener("input", filter);
  kind.addEventListener("change", filter);
  filter();

  const tokensOf = (said) => [...said.querySelectorAll("i")];
  const line = (text, name) => {
    const paragraph = document.createElement("p");
    paragraph.textContent = text;
    if (name) paragraph.className = name;
    return paragraph;
  };
  const visible = (text) => `“${text.replaceAll("\n", "↵")}”`;
  let pointed = null;

  const show = (token) => {
    if (pointed) pointed.classList.remove("at");
    pointed = token;
    // It stays where it is when it is empty: only what is there already is read out on a change.
    if (!token) return detail.replaceChildren();
    token.classList.add("at");
    const step = token.parentElement, said = step.parentElement;
    const steps = [...said.querySelectorAll(".s")], number = steps.indexOf(step);
    const source = token.className.slice(0, 1);
    const text = token.classList.contains("end") ? "The end" : visible(token.textContent);
    const free = step.querySelectorAll("i:not(.m)").length;
    const drafted = Number(step.dataset.d || 0);
    const lines = [line(`${text} ${names[source]}.`)];
    if (token.dataset.a !== undefined) {
      const near = said.closest(".answer").querySelectorAll(".near-list li")[token.dataset.a];
      lines.push(line(`Its question: ${near.textContent}`, "from"));
    }
    if (number === 0) {
      lines.push(line("The first token: it comes from reading the prompt, and is no step.", "from"));
    } else {
      let what = `Step ${number} of ${steps.length - 1}: ` +
        `${plural(step.querySelectorAll("i").length, "token")}, ${free} of them for free`;
      if (said.dataset.partial !== undefined) what += ".";
      else what += drafted ? `; ${free} of ${drafted} drafted were right.` : "; nothing was drafted.";
      if (step.dataset.r) what += ` Drafted, and not what the model said: ${visible(step.dataset.r)}.`;
      lines.push(line(what, "from"));
    }
    detail.replaceChildren(...lines);
  };
  const tokenOf = (event) =>
    event.target instanceof Element ? event.target.closest(".said i") : null;
  const go = (token) => {
    for (const other of token.closest(".said").querySelectorAll("[tabindex='0']")) {
      other.tabIndex = -1;
    }
    token.tabIndex = 0;
    token.focus();
  };

  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse") {
      const token = tokenOf(event);
      if (token || !(document.activeElement && document.activeElement.matches(".said i"))) {
        show(token);
      }
    }
  });
  document.addEventListener("click", (event) => {
    const token = tokenOf(event);
    if (token) go(token);
    else show(null);
  });
  document.addEventListener("focusin", (event) => show(tokenOf(event)));
  document.addEventListener("focusout", () => show(null));
  document.addEventListener("keydown", (event) => {
    const token = tokenOf(event);
    if (!token || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape") return show(null);
    const said = token.closest(".said"), tokens = tokensOf(said), at = tokens.indexOf(token);
    const steps = [...said.querySelectorAll(".s")], step = steps.indexOf(token.parentElement);
    const next = {
      ArrowRight: tokens[at + 1],
      ArrowLeft: tokens[at - 1],
      ArrowDown: steps[step + 1] && steps[step + 1].querySelector("i"),
      ArrowUp: steps[step - 1] && steps[step - 1].querySelector("i"),
      Home: tokens[0],
      End: tokens[tokens.length - 1],
    };
    if (!(event.key in next)) return;
    event.preventDefault();
    if (next[event.key]) go(next[event.key]);
  });
  for (const said of document.querySelectorAll(".said")) {
    const first = said.querySelector("i");
    if (first) first.tabIndex = 0;
  }
})();
