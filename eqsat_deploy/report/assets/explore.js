// The live page: asks the process that holds the e-graph, and shows what it answers. The e-graph itself is egraph.js.
"use strict";
(function () {
  const token = document.querySelector("meta[name=token]").content;
  const said = document.querySelector(".ex-said"), rules = document.getElementById("ex-rules");
  const price = document.getElementById("ex-price"), launches = document.getElementById("ex-launches");
  let state = null, picked = null, busy = false;
  const make = (tag, attributes = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), attributes);
    element.append(...children);
    return element;
  };
  const number = x => x.toLocaleString("en", { maximumFractionDigits: 2 });
  const signed = x => (x < 0 ? "−" : "+") + number(Math.abs(x));

  async function ask(change, doing) {
    if (busy) return;
    busy = true;
    document.body.classList.add("busy");
    document.querySelectorAll(".live button, .live fieldset, .ex-all").forEach(e => { e.disabled = true; });
    said.textContent = doing;
    try {
      const answer = await fetch(change ? "change" : "state", {
        method: change ? "POST" : "GET", headers: { "X-Token": token }, body: change ? JSON.stringify(change) : undefined });
      const found = await answer.json();
      if (!answer.ok) throw new Error(found.error);
      show(found, change);
    } catch (error) {
      if (state) show(state, null);
      said.textContent = `That did not work: ${error.message}`;
    }
    document.body.classList.remove("busy");
    busy = false;
  }

  function show(found, change) {
    const old = state, boxes = [...document.querySelectorAll(".eg-class")].map(e => +e.dataset.class);
    const names = old ? new Map(old.egraph.classes.map(c => [c[0], c[1]])) : new Map();
    state = found;
    if (!change) state.egraph.fresh = [];
    picked = null;
    const form = `${number(found.cost)} ${found.unit}, ` +
      (found.proved ? "proved to be the cheapest form" : `no form is cheaper than ${number(found.bound)}`);
    const changed = found.cost - found.before, grown = found.nodes - found.nodes_before;
    const size = `${found.nodes.toLocaleString("en")} e-nodes in ${found.classes.toLocaleString("en")} e-classes`;
    said.textContent = !change ? `${form}. ${size}; saturation stopped: ${found.stopped}.` :
      `${number(found.before)} → ${form} (${signed(changed)}). ${size}` +
      (change.rules ? ` (${signed(grown)} e-nodes, ${signed(found.classes - found.classes_before)} e-classes` +
        (found.egraph.fresh.length ? "; dashed red: made by the rules just put in" : "") + ")." : ", at other prices.");
    // What was open stays open, by its name, and what is new opens with it.
    const data = found.egraph, kept = new Set(boxes.map(c => names.get(c)));
    if (old) {
      const open = data.classes.filter(c => kept.has(c[1])).map(c => c[0]);
      const made = data.nodes.filter(n => n[7].some(r => data.fresh.includes(r)));
      const shown = new Set(open);
      made.slice(0, 20).forEach(n => { shown.add(n[0]); n[3].forEach(c => shown.add(c)); });
      if (shown.size) data.open = [...shown];
    }
    const root = make("div", { id: "egraph" });
    document.getElementById("egraph").replaceWith(root);
    root.addEventListener("form", event => pick(event.detail));
    showEGraph(data, root);
    drawRules();
    drawPrice();
    drawLaunches();
  }

  const on = () => state.families.flatMap(f => f.rules.filter(r => r.on).map(r => r.name));
  function set(names, wanted, doing) {
    const now = new Set(on());
    names.forEach(name => wanted ? now.add(name) : now.delete(name));
    ask({ rules: [...now] }, doing);
  }
  function drawRules() {
    const unfolded = new Set([...rules.querySelectorAll("details[open]")].map(d => d.dataset.family));
    const every = state.families.flatMap(f => f.rules.map(r => r.name));
    rules.replaceChildren(make("h2", { textContent: "Rules" }), make("p", { className: "ex-all" },
      make("button", { type: "button", textContent: "All", onclick: () => set(every, true, "Saturating with all rules.") }),
      make("button", { type: "button", textContent: "None", onclick: () => set(every, false, "Without any rule but the target's.") })));
    state.families.forEach(family => {
      const names = family.rules.map(r => r.name), count = family.rules.filter(r => r.on).length;
      const matches = family.rules.reduce((sum, r) => sum + r.matches, 0);
      const tick = (input, label, about) => make("label", { title: about }, input, ` ${label}`);
      const all = make("input", { type: "checkbox", checked: count === names.length, indeterminate: count > 0 && count < names.length });
      all.onchange = () => set(names, all.checked, `${all.checked ? "Applying" : "Without"} ${family.name}.`);
      const fold = make("details", { open: unfolded.has(family.name) }, make("summary", {}, `${count} of ${names.length} on`,
        matches ? `, ${matches.toLocaleString("en")} match${matches > 1 ? "es" : ""}` : ""));
      fold.dataset.family = family.name;
      family.rules.forEach(r => {
        const one = make("input", { type: "checkbox", checked: r.on });
        one.dataset.rule = r.name;
        one.onchange = () => set([r.name], one.checked, `${one.checked ? "Applying" : "Without"} ${r.name}.`);
        fold.append(tick(one, r.name + (r.matches ? ` (${r.matches.toLocaleString("en")})` : ""), r.doc));
      });
      all.dataset.family = family.name;
      rules.append(make("div", { className: "ex-family" }, tick(all, family.name, `${names.length} rules`), fold));
    });
  }

  function pick(position) { picked = position; drawPrice(); }
  function drawPrice() {
    const node = picked === null ? null : state.egraph.nodes[picked];
    const reset = make("button", { type: "button", textContent: "All prices as they were", disabled: !state.prices.length,
      onclick: () => ask({ reset: true }, "Pricing as the cost model does.") });
    price.onsubmit = event => event.preventDefault();
    if (!node || node[4] === null) {
      price.replaceChildren(make("span", { textContent: node ? "The target has no such kernel: it has no price. " :
        "Click a form to change the price of its kernel. " }), reset);
      return;
    }
    const input = make("input", { type: "number", min: 0, step: "any", value: node[4], id: "ex-amount" });
    price.onsubmit = event => {
      event.preventDefault();
      if (input.value !== "") ask({ node: picked, version: state.version, price: +input.value }, "Looking for the cheapest form at that price.");
    };
    price.replaceChildren(make("label", {}, `Price of ${node[1]}, ${state.unit} `, input),
      make("button", { type: "submit", textContent: "Set" }), reset);
  }

  function drawLaunches() {
    const row = l => make("tr", { className: l.kind === "new" ? "after" : l.kind === "same" ? "same" : "before" },
      make("td", { className: "k a" }, make("code", { className: l.kind === "gone" ? "gone" : "", textContent: l.text })),
      make("td", { className: "n", textContent: number(l.cost) }),
      make("td", { textContent: { new: "new", gone: "no longer", same: "" }[l.kind] }));
    const head = make("tr", {}, make("th", { scope: "col", textContent: "Kernel" }),
      make("th", { scope: "col", className: "n", textContent: state.unit }), make("th", { scope: "col", textContent: "Since the last change" }));
    launches.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...state.launches.map(row))));
  }

  ask(null, "Loading.");
})();
