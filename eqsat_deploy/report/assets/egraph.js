// The e-graph view: e-classes as dashed boxes of forms, laid out by dagre, drawn as SVG, so that it is text to search,
// to read aloud and to print. Data flows from left to right. Where the e-graph lives, `data.open` are the boxes to begin
// with and `data.fresh` the rules whose e-nodes are new; a click on a form is told as an event `form` with its position.
"use strict";
function showEGraph(data, root) {
  const LETTER = 7.25, LINE = 21, PAD = 8, FORMS = 8, SMALL = 40;
  const CLASS = { number: 0, name: 1, shape: 2, dtype: 3, module: 4, why: 5 };
  const [OWNER, TEXT, NAMES, READS, PRICE, CHOSEN, INT8, RULES, BORN] = [0, 1, 2, 3, 4, 5, 6, 7, 8];
  const classes = new Map(data.classes.map(c => [c[CLASS.number], c]));
  const formsOf = new Map(), readersOf = new Map();
  const push = (map, key, value) => map.has(key) ? map.get(key).push(value) : map.set(key, [value]);
  data.nodes.forEach(node => {
    push(formsOf, node[OWNER], node);
    node[READS].forEach(c => push(readersOf, c, node[OWNER]));
  });
  const rank = n => [-n[CHOSEN], n[PRICE] === null ? Infinity : n[PRICE]];
  formsOf.forEach(forms => forms.sort((a, b) => rank(a)[0] - rank(b)[0] || rank(a)[1] - rank(b)[1] || 0));

  // -- what is shown ----------------------------------------------------------------------------------------
  const last = data.phases.length;
  const state = { open: new Set(), all: new Set(), iteration: last, rule: "", module: "", chosen: false, limit: 60, focus: null };
  const inModule = (c, module) => c[CLASS.module] === module || c[CLASS.module].startsWith(module + ".");
  const fresh = new Set(data.fresh || []);
  const isFresh = n => n[RULES].some(r => fresh.has(r));
  const visible = n => n[BORN] <= state.iteration && (!state.chosen || n[CHOSEN]) &&
    (!state.rule || n[RULES].includes(+state.rule));
  const modules = [...new Set(data.classes.flatMap(c => {
    const parts = c[CLASS.module].split(".");
    return c[CLASS.module] ? parts.map((_, i) => parts.slice(0, i + 1).join(".")) : [];
  }))];

  function openModule(module) {
    state.open = new Set(data.classes.filter(c => !module || inModule(c, module)).map(c => c[CLASS.number]));
  }
  function start() {
    Object.assign(state, { all: new Set(), iteration: last, rule: "", module: "", chosen: false, focus: null });
    if (data.open) state.open = new Set(data.open);
    else if (data.start) {
      state.open = new Set(data.start);
      for (let level = [...state.open], depth = 0; depth < 2; depth++) {
        level = level.flatMap(c => (formsOf.get(c) || []).slice(0, FORMS).flatMap(n => n[READS]));
        level.forEach(c => state.open.add(c));
      }
    } else if (classes.size > SMALL && modules.length) {
      const end = data.roots.map(c => classes.get(c)[CLASS.module]).find(Boolean) || modules[modules.length - 1];
      state.module = end.split(".")[0];
      openModule(state.module);
      [...state.open].forEach(c => formsOf.get(c).forEach(n => n[READS].forEach(r => state.open.add(r))));
    } else openModule("");
    state.focus = data.start && !data.open ? data.start[0] : null;
  }

  // -- controls ---------------------------------------------------------------------------------------------
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes))
      key in element && key !== "list" ? (element[key] = value) : element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const option = (value, text) => make("option", { value, textContent: text });
  const search = make("input", { type: "search", id: "eg-search", placeholder: "tensor, kernel or rule", list: "eg-names" });
  const names = make("datalist", { id: "eg-names" });
  [...new Set(data.classes.map(c => c[CLASS.name]))].slice(0, 2000).forEach(n => names.append(option(n, n)));
  const module = make("select", { id: "eg-module" }, option("", "all modules"), ...modules.map(m => option(m, m)));
  const used = new Map();
  data.nodes.forEach(n => n[RULES].forEach(r => used.set(r, (used.get(r) || 0) + 1)));
  const rule = make("select", { id: "eg-rule" }, option("", "any rule"),
    ...[...used.keys()].sort((a, b) => a - b).map(r => option(String(r), `${data.rules[r]} (${used.get(r)})`)));
  const slider = make("input", { type: "range", id: "eg-iteration", min: 0, max: last, step: 1 });
  const when = make("output", { htmlFor: "eg-iteration" });
  const chosen = make("input", { type: "checkbox", id: "eg-chosen" });
  const limit = make("input", { type: "number", id: "eg-limit", min: 1, max: 5000, step: 10 });
  const button = (text, title, act) => make("button", { type: "button", textContent: text, title, onclick: act });
  const label = (text, input, ...more) => make("label", {}, text + " ", input, ...more);
  const status = make("p", { className: "eg-status", role: "status" });
  const detail = make("p", { className: "eg-detail" });
  const NS = "http://www.w3.org/2000/svg";
  const draw = (tag, attributes, text) => {
    const element = document.createElementNS(NS, tag);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const svg = draw("svg", { class: "eg-canvas", tabindex: 0, role: "group",
    "aria-label": "e-graph: boxes are e-classes, rows in them are forms. Arrow keys move, plus and minus zoom." });
  const world = draw("g", {});
  svg.append(world);
  root.append(
    make("div", { className: "eg-bar" }, label("Search", search), names, label("Module", module), label("Rule", rule),
      label("Iteration", slider, " ", when), make("label", {}, chosen, " chosen forms only"), label("At most", limit, " boxes"),
      make("span", {}, button("+", "zoom in", () => zoom(1.25)), button("−", "zoom out", () => zoom(0.8)),
        button("Fit", "show everything that is drawn", fit), button("Start", "begin again", () => { start(); render(true); }))),
    status, svg, detail,
    make("p", { className: "eg-key" }, make("span", { className: "eg-k chosen", textContent: "chosen form" }), " ",
      make("span", { className: "eg-k int8", textContent: "INT8" }), " ", make("span", { className: "eg-k", textContent: "other form" }),
      ` Every form in a dashed box computes the same tensor. The number is the kernel's own price in ${data.unit}; “—” marks ` +
      "what the target has no kernel for, which is only ever part of another. A click on a box's title opens what it reads " +
      "and what reads it, a click on a form opens what that form reads."));

  // -- layout -----------------------------------------------------------------------------------------------
  const words = n => `${n[TEXT]}(${n[NAMES].join(", ")})`;
  const price = n => n[PRICE] === null ? "—" : n[PRICE].toLocaleString("en", { maximumFractionDigits: 2 });
  const cut = (text, size) => text.length > size ? text.slice(0, size - 1) + "…" : text;

  function boxOf(number) {
    const c = classes.get(number), forms = (formsOf.get(number) || []).filter(visible);
    const shown = state.all.has(number) ? forms : forms.slice(0, FORMS);
    const lines = [`${c[CLASS.name]} ${c[CLASS.shape]} ${c[CLASS.dtype]}`];
    const note = state.iteration === last && !state.rule && c[CLASS.why] ? `no form chosen: ${c[CLASS.why]}` : "";
    const hidden = forms.length - shown.length;
    const rows = shown.map(n => ({ node: n, text: cut(words(n), 64), price: price(n) }));
    const longest = Math.max(lines[0].length, Math.min(note.length, 70), ...rows.map(r => r.text.length + r.price.length + 3), 12);
    const noted = note ? [cut(note, 70)] : [];
    const height = PAD * 2 + LINE * (1 + noted.length + rows.length + (hidden > 0 ? 1 : 0));
    return { number, title: lines[0], note: noted[0], full: note, rows, hidden, width: longest * LETTER + 4 * PAD, height };
  }

  function chosenFew() {
    // Nearest to what is looked at first, so that a limit leaves out what is far.
    const open = [...state.open].filter(c => classes.has(c) && (formsOf.get(c) || []).some(visible));
    if (open.length <= state.limit) return [open, 0];
    const wanted = new Set(open), seen = new Set(), order = [];
    const queue = [state.focus, ...data.roots, ...open].filter(c => wanted.has(c));
    while (queue.length && order.length < state.limit) {
      const c = queue.shift();
      if (seen.has(c)) continue;
      seen.add(c);
      order.push(c);
      const near = (formsOf.get(c) || []).filter(visible).flatMap(n => n[READS]).concat(readersOf.get(c) || []);
      queue.unshift(...near.filter(d => wanted.has(d) && !seen.has(d)).slice(0, 12));
    }
    return [order, open.length - order.length];
  }

  function layout(numbers) {
    const graph = new dagre.graphlib.Graph({ multigraph: false });
    graph.setGraph({ rankdir: "LR", ranksep: 70, nodesep: 22, edgesep: 12, ranker: numbers.length > 400 ? "longest-path" : "network-simplex" });
    graph.setDefaultEdgeLabel(() => ({}));
    const boxes = new Map(numbers.map(c => [c, boxOf(c)]));
    boxes.forEach((box, c) => graph.setNode(String(c), box));
    boxes.forEach((box, c) => box.rows.forEach(row => row.node[READS].forEach(source => {
      if (boxes.has(source) && source !== c) graph.setEdge(String(source), String(c), {});
    })));
    dagre.layout(graph);
    const columns = new Map();
    boxes.forEach(box => {
      const x = Math.round(box.x), half = Math.max(columns.get(x) || 0, box.width / 2);
      columns.set(x, half);
    });
    return { graph, boxes, columns: [...columns].sort((a, b) => a[0] - b[0]), extent: graph.graph() };
  }

  // Level inside a column of boxes, where dagre keeps a lane free, and curved only between columns.
  function route(points, columns) {
    const stops = [];
    points.forEach(p => {
      const column = columns.find(([x, half]) => Math.abs(p.x - x) < half);
      if (!column) return stops.push([p.x, p.y]);
      const [x, half] = column, ends = [[x - half, p.y], [x + half, p.y]];
      stops.push(...(points[points.length - 1].x >= points[0].x ? ends : ends.reverse()));
    });
    return stops;
  }
  function curve(stops) {
    let path = `M${stops[0][0]},${stops[0][1]}`;
    for (let i = 1; i < stops.length; i++) {
      const [x0, y0] = stops[i - 1], [x1, y1] = stops[i];
      const middle = (x0 + x1) / 2;
      path += y0 === y1 ? `L${x1},${y1}` : `C${middle},${y0} ${middle},${y1} ${x1},${y1}`;
    }
    return path;
  }

  function render(refit) {
    const [numbers, cutOff] = chosenFew();
    const { graph, boxes, columns, extent } = layout(numbers);
    world.replaceChildren();
    const lines = draw("g", {}), front = draw("g", {}), nodes = draw("g", {});
    boxes.forEach((box, c) => {
      const left = box.x - box.width / 2, top = box.y - box.height / 2;
      box.rows.forEach((row, i) => {
        const y = top + PAD + LINE * (i + 1.5 + (box.note ? 1 : 0));
        row.node[READS].forEach(source => {
          if (!boxes.has(source) || source === c) return;
          const from = boxes.get(source), backwards = from.x > box.x;
          const inner = graph.edge(String(source), String(c)).points.slice(1, -1);
          const side = backwards ? -1 : 1;
          const stops = [[from.x + side * from.width / 2, from.y]];
          const half = columns.find(([x]) => x === Math.round(from.x))[1], mine = columns.find(([x]) => x === Math.round(box.x))[1];
          stops.push([from.x + side * half, from.y], ...route(inner, columns), [box.x - side * mine, y],
            [box.x - side * (box.width / 2 - PAD + 2), y]);
          const strong = row.node[CHOSEN];
          (strong ? front : lines).append(draw("path", { d: curve(stops), class: strong ? "eg-edge chosen" : "eg-edge",
            "marker-end": strong ? "url(#eg-tip-chosen)" : "url(#eg-tip)", "data-from": source, "data-to": c }));
        });
      });
      nodes.append(drawn(box, left, top));
    });
    const tip = (id, kind) => {
      const marker = draw("marker", { id, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" });
      marker.append(draw("path", { d: "M0,0L8,4L0,8z", class: `eg-tip ${kind}` }));
      return marker;
    };
    const defs = draw("defs", {});
    defs.append(tip("eg-tip", ""), tip("eg-tip-chosen", "chosen"));
    world.append(defs, lines, nodes, front);
    state.extent = { width: extent.width || 1, height: extent.height || 1 };
    say(numbers, boxes, cutOff);
    controls();
    if (refit) look(); else move();
  }

  function drawn(box, left, top) {
    const c = classes.get(box.number);
    const group = draw("g", { class: "eg-class" + (box.number === state.focus ? " focus" : ""), "data-class": box.number });
    group.append(draw("rect", { x: left, y: top, width: box.width, height: box.height, rx: 6 }));
    const head = draw("g", { class: "eg-title", tabindex: 0, role: "button", "aria-label": `open the neighbours of ${box.title}` });
    head.append(draw("rect", { x: left, y: top, width: box.width, height: LINE + PAD, class: "eg-hit" }),
      draw("text", { x: left + PAD, y: top + PAD + 14 }, box.title), draw("title", {}, c[CLASS.module] ? `in ${c[CLASS.module]}` : "made by rules"));
    acts(head, () => neighbours(box.number));
    group.append(head);
    if (box.note) {
      const note = draw("text", { x: left + PAD, y: top + PAD + LINE + 13, class: "eg-note" }, box.note);
      note.append(draw("title", {}, box.full));
      group.append(note);
    }
    box.rows.forEach((row, i) => {
      const n = row.node, y = top + PAD + LINE * (i + 1 + (box.note ? 1 : 0));
      const born = n[BORN] ? `made by ${n[RULES].map(r => data.rules[r]).join(", ") || "a rule"} in iteration ${n[BORN]}` : "the model's own";
      const line = draw("g", { class: "eg-form" + (n[CHOSEN] ? " chosen" : "") + (n[INT8] ? " int8" : "") + (isFresh(n) ? " fresh" : ""), tabindex: 0, role: "button",
        "aria-label": `${words(n)}, ${price(n)} ${data.unit}, ${n[CHOSEN] ? "chosen, " : ""}${born}` });
      line.append(draw("rect", { x: left + PAD, y: y + 1, width: box.width - 2 * PAD, height: LINE - 3, rx: 4 }),
        draw("text", { x: left + 2 * PAD, y: y + 14 }, row.text),
        draw("text", { x: left + box.width - 2 * PAD, y: y + 14, "text-anchor": "end" }, row.price),
        draw("title", {}, `${words(n)}\n${born}`));
      acts(line, () => { n[READS].forEach(r => state.open.add(r)); tell(n, born); state.focus = box.number; render(false); });
      group.append(line);
    });
    if (box.hidden > 0) {
      const y = top + PAD + LINE * (1 + (box.note ? 1 : 0) + box.rows.length);
      const more = draw("g", { class: "eg-more", tabindex: 0, role: "button" });
      more.append(draw("rect", { x: left, y, width: box.width, height: LINE, class: "eg-hit" }),
        draw("text", { x: left + 2 * PAD, y: y + 14 }, `+ ${box.hidden} more form${box.hidden > 1 ? "s" : ""}`));
      acts(more, () => { state.all.add(box.number); render(false); });
      group.append(more);
    }
    return group;
  }

  function acts(element, act) {
    element.addEventListener("click", () => { if (!dragged) act(); });
    element.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      act();
    });
  }
  function neighbours(number) {
    (formsOf.get(number) || []).filter(visible).forEach(n => n[READS].forEach(c => state.open.add(c)));
    (readersOf.get(number) || []).forEach(c => state.open.add(c));
    state.open.add(number);
    state.focus = number;
    const c = classes.get(number);
    detail.textContent = `${c[CLASS.name]} ${c[CLASS.shape]} ${c[CLASS.dtype]}${c[CLASS.module] ? ` of ${c[CLASS.module]}` : ", made by rules"}` +
      (c[CLASS.why] ? `; no form chosen: ${c[CLASS.why]}` : "");
    render(false);
    const again = world.querySelector(`[data-class="${number}"] .eg-title`);
    if (again) again.focus({ preventScroll: true });
  }
  function tell(n, born) {
    root.dispatchEvent(new CustomEvent("form", { detail: data.nodes.indexOf(n) }));
    detail.textContent = `${words(n)}: ${price(n)} ${data.unit}; ${n[CHOSEN] ? "chosen; " : ""}${born}`;
  }

  function say(numbers, boxes, cutOff) {
    let forms = 0, hidden = 0;
    boxes.forEach(box => { forms += box.rows.length; hidden += box.hidden; });
    const outside = classes.size - numbers.length - cutOff;
    const left = [];
    if (cutOff) left.push(`${cutOff} e-classes that are open are more than “at most ${state.limit} boxes”`);
    if (outside > 0) left.push(`${outside.toLocaleString("en")} e-classes are not open${state.rule || state.chosen || state.iteration < last ? " or have no form under these filters" : ""}`);
    if (hidden) left.push(`${hidden} forms are folded in boxes`);
    status.textContent = `Shown: ${numbers.length} of ${classes.size.toLocaleString("en")} e-classes, ${forms} of ${data.nodes.length.toLocaleString("en")} e-nodes` +
      (state.module ? ` (module ${state.module})` : "") + ". " + (left.length ? `Left out: ${left.join("; ")}.` : "Nothing is left out.");
    status.classList.toggle("cut", left.length > 0);
  }
  function controls() {
    module.value = state.module; rule.value = state.rule; slider.value = state.iteration;
    chosen.checked = state.chosen; limit.value = state.limit;
    when.textContent = state.iteration ? `${state.iteration} of ${last} (${data.phases[state.iteration - 1]})` : "0: the model as it came";
  }

  // -- moving -----------------------------------------------------------------------------------------------
  const view = { x: 0, y: 0, scale: 1 };
  let dragged = false;
  const move = () => world.setAttribute("transform", `translate(${view.x},${view.y}) scale(${view.scale})`);
  function fit() {
    const width = svg.clientWidth || 900, height = svg.clientHeight || 560, { extent } = state;
    view.scale = Math.max(0.05, Math.min(1.15, (width - 24) / extent.width, (height - 24) / extent.height));
    view.x = (width - extent.width * view.scale) / 2;
    view.y = Math.max(12, (height - extent.height * view.scale) / 2);
    move();
  }
  // Everything where that is readable, else the end that is looked at.
  function look() {
    fit();
    if (view.scale >= 0.6) return;
    view.scale = 0.75;
    const drawn = [...world.querySelectorAll(".eg-class")].map(e => +e.dataset.class);
    centre([state.focus, ...data.roots, ...drawn.reverse()].find(c => drawn.includes(c)));
    const right = view.x + state.extent.width * view.scale, spare = svg.clientWidth - 24 - right;
    if (spare > 0) view.x = Math.min(view.x + spare, 12);
    move();
  }
  function zoom(factor, x = svg.clientWidth / 2, y = svg.clientHeight / 2) {
    const scale = Math.min(3, Math.max(0.05, view.scale * factor));
    view.x = x - (x - view.x) * scale / view.scale;
    view.y = y - (y - view.y) * scale / view.scale;
    view.scale = scale;
    move();
  }
  function centre(number) {
    const box = world.querySelector(`[data-class="${number}"] rect`);
    if (!box) return;
    const at = name => +box.getAttribute(name);
    view.scale = Math.max(view.scale, 0.75);
    view.x = svg.clientWidth / 2 - (at("x") + at("width") / 2) * view.scale;
    view.y = svg.clientHeight / 2 - (at("y") + at("height") / 2) * view.scale;
    move();
  }
  svg.addEventListener("wheel", event => {
    if (!event.ctrlKey && !svg.contains(document.activeElement)) return; // the page scrolls until the view is used
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY / 500), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  svg.addEventListener("pointerdown", event => {
    let { clientX: x, clientY: y } = event, moved = 0;
    dragged = false;
    const follow = e => {
      moved += Math.abs(e.clientX - x) + Math.abs(e.clientY - y);
      dragged = moved > 5;
      view.x += e.clientX - x; view.y += e.clientY - y;
      x = e.clientX; y = e.clientY;
      if (dragged) move();
    };
    addEventListener("pointermove", follow);
    addEventListener("pointerup", () => removeEventListener("pointermove", follow), { once: true });
  });
  svg.addEventListener("keydown", event => {
    const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
    if (step) { view.x += step[0]; view.y += step[1]; move(); event.preventDefault(); }
    else if (event.key === "+" || event.key === "=") zoom(1.25);
    else if (event.key === "-") zoom(0.8);
    else if (event.key === "0") fit();
  });

  // -- filters ----------------------------------------------------------------------------------------------
  search.addEventListener("change", () => {
    const text = search.value.trim().toLowerCase();
    if (!text) return;
    const exact = data.classes.filter(c => c[CLASS.name].toLowerCase() === text);
    const found = exact.length ? exact : data.classes.filter(c => `${c[CLASS.name]} ${c[CLASS.module]}`.toLowerCase().includes(text) ||
      formsOf.get(c[CLASS.number]).some(n => n[TEXT].toLowerCase().includes(text) || n[RULES].some(r => data.rules[r].includes(text))));
    if (!found.length) { detail.textContent = `Nothing is called “${search.value}”.`; return; }
    found.slice(0, state.limit).forEach(c => state.open.add(c[CLASS.number]));
    state.focus = found[0][CLASS.number];
    detail.textContent = `${found.length} e-class${found.length > 1 ? "es" : ""} found` +
      (found.length > state.limit ? `; the first ${state.limit} are opened` : "") + `: ${found.slice(0, 8).map(c => c[CLASS.name]).join(", ")}${found.length > 8 ? ", …" : ""}`;
    render(false);
    centre(state.focus);
  });
  module.addEventListener("change", () => { state.module = module.value; state.focus = null; openModule(state.module); render(true); });
  rule.addEventListener("change", () => {
    state.rule = rule.value;
    if (state.rule && !data.nodes.some(n => state.open.has(n[OWNER]) && visible(n))) openModule(state.module = "");
    render(true);
  });
  slider.addEventListener("input", () => { state.iteration = +slider.value; render(false); });
  chosen.addEventListener("change", () => { state.chosen = chosen.checked; render(true); });
  limit.addEventListener("change", () => { state.limit = Math.max(1, +limit.value || 60); render(true); });

  start();
  render(true);
  addEventListener("resize", function again() {
    if (root.isConnected) look(); else removeEventListener("resize", again);
  });
}
