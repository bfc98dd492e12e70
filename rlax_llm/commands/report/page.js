"use strict";
// The data is text of models and of users: it goes into the page as text, never as markup.
// Names are those of runs: "constructor" is a metric, and not what every object has.
const bare = (_, it) => (it instanceof Object && !Array.isArray(it) ? Object.setPrototypeOf(it, null) : it);
const { runs, panels } = JSON.parse(document.getElementById("data").textContent, bare);
const COLORS = ["#3f83cc", "#d9822b", "#2a9d6f", "#c2495f", "#8b62c4", "#8a7a2e", "#1f9aa8", "#7f7f86"];
const WIDTH = 360, HEIGHT = 190, LEFT = 52, RIGHT = 8, TOP = 8, BOTTOM = 22;
const LEAD = ["reward", "objective/scores", "episode_return", "held_out_accuracy", "held_out_reward", "accuracy"];
const byId = (id) => document.getElementById(id);
const shown = runs.map(() => true);
const DASHES = ["none", "6 3", "2 3", "9 3 2 3"];
runs.forEach((run, index) => {
  run.color = COLORS[index % COLORS.length];
  run.dash = DASHES[Math.floor(index / COLORS.length) % DASHES.length];
});

function built(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

const make = (tag, attributes = {}, ...children) => built(document.createElement(tag), attributes, children);
const draw = (tag, attributes = {}, ...children) =>
  built(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
const canvas = () => draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });

function number(value) {
  if (value == null) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2);
  return value.toLocaleString("en-US", { maximumSignificantDigits: size >= 1e4 ? 7 : 4 });
}

// With as many digits as tell a mark from its neighbors, which are a step away.
function tick(value, step) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  const digits = Math.max(1, Math.min(6, Math.ceil(Math.log10(size / step)) + 1));
  if (size >= 1e9 || size < 1e-3) return value.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
  if (size >= 1e6) return `${+(value / 1e6).toPrecision(Math.max(3, digits))}M`;
  if (size >= 1e4) return `${+(value / 1e3).toPrecision(Math.max(3, digits))}k`;
  return String(+value.toPrecision(Math.max(4, digits)));
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((times) => times * power >= rough) * power;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(+at.toPrecision(12));
  return found;
}

// An exponential mean whose first values count as much as they should.
function smooth(values, weight) {
  let sum = 0, total = 0;
  return values.map((value) => {
    if (value == null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

function scale(values, from, to, logarithmic = false) {
  const there = values.filter((value) => value !== null && value !== undefined && (!logarithmic || value > 0));
  let low = Infinity, high = -Infinity;
  for (const value of there) { low = Math.min(low, value); high = Math.max(high, value); }
  if (low > high) { low = 0; high = 1; }
  if (low === high) { const room = Math.abs(low) * 0.1 || 0.5; low = logarithmic ? low / 1.2 : low - room; high += room; }
  const bend = logarithmic ? Math.log10 : (value) => value;
  // What is beyond the scale, as an interval may be, is drawn at its edge.
  const share = (value) => (logarithmic && value <= 0 ? 0 : (bend(value) - bend(low)) / (bend(high) - bend(low)));
  const place = (value) => from + Math.max(0, Math.min(1, share(value))) * (to - from);
  const whole = there.every(Number.isInteger);
  return { low, high, place, whole, marks: (count) => (logarithmic ? powers(low, high) : ticks(low, high, count)) };
}

// Powers of ten, of many every so many-th; within one of them, marks as of a plain scale.
function powers(low, high) {
  const first = Math.ceil(Math.log10(low * 0.999)), last = Math.floor(Math.log10(high * 1.001));
  if (last - first < 1) return ticks(low, high, 4).filter((mark) => mark > 0);
  const every = Math.ceil((last - first + 1) / 5), found = [];
  for (let power = first; power <= last; power += every) found.push(10 ** power);
  return found;
}

// The points of a line, in pieces: it is broken where a number was measured that is not finite.
function pieces(xs, ys, x, y, allowed, breaks = []) {
  const found = [[]];
  ys.forEach((value, index) => {
    if (breaks.includes(index)) found.push([]);
    // A step without the number is passed over: what is measured now and then is still a line.
    if (value == null || xs[index] === null || xs[index] === undefined || !allowed(value)) return;
    found[found.length - 1].push(`${x.place(xs[index]).toFixed(1)} ${y.place(value).toFixed(1)}`);
  });
  return found;
}

// A piece of one point is a dot.
function path(...line) {
  return pieces(...line).map((piece) => (piece.length ? `M${piece.join("L")}${piece.length > 1 ? "" : "h0"}` : "")).join("");
}

// What lies between two lines.
function area(one, other) {
  return one.map((piece, index) => (piece.length ? `M${[...piece, ...[...other[index]].reverse()].join("L")}Z` : "")).join("");
}

function frame(x, y) {
  const svg = canvas();
  // Between two steps there is none: along whole numbers only these are marked.
  const across = y.marks(5), along = x.marks(5).filter((mark) => !x.whole || Number.isInteger(mark));
  const step = (marks) => (marks.length > 1 ? marks[1] - marks[0] : Math.abs(marks[0]));
  for (const mark of across) {
    const at = y.place(mark);
    svg.append(draw("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: at, y2: at }));
    svg.append(draw("text", { x: LEFT - 5, y: at + 4, "text-anchor": "end" }, tick(mark, step(across))));
  }
  for (const mark of along) {
    svg.append(draw("text", { x: x.place(mark), y: HEIGHT - 5, "text-anchor": "middle" }, tick(mark, step(along))));
  }
  return svg;
}

function panel(title, unit, svg, read) {
  const box = make("div", { class: "card panel" }, make("h3", {}, title), make("div", { class: "unit" }, unit), svg);
  svg.setAttribute("aria-label", `${title}, ${unit}`);
  if (!read) return box;
  const tip = make("div", { class: "tip", hidden: "" });
  const cursor = draw("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cursor);
  box.append(tip);
  svg.addEventListener("pointermove", (event) => {
    const rect = svg.getBoundingClientRect(), at = ((event.clientX - rect.left) / rect.width) * WIDTH;
    const lines = read(at);
    tip.hidden = !lines.length;
    cursor.setAttribute("visibility", lines.length ? "visible" : "hidden");
    if (!lines.length) return;
    cursor.setAttribute("x1", lines[0].at);
    cursor.setAttribute("x2", lines[0].at);
    tip.replaceChildren(...lines.map((line) => {
      const dot = make("i");
      dot.style.background = line.color;
      return make("div", {}, dot, line.text);
    }));
    tip.style.left = at > WIDTH / 2 ? "12px" : "auto";
    tip.style.right = at > WIDTH / 2 ? "auto" : "12px";
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); });
  return box;
}

// What is measured now and then, as held-out data is, is drawn as it is.
function isSparse(run, name) {
  const values = run.curves[name], known = values.filter((value) => value !== null).length;
  return known + (run.gaps[name] ? run.gaps[name].at.length : 0) < values.length / 2 || known < 3;
}

// A quantity of runs whose commands mean the same by its name.
function quantities(name) {
  const found = new Map();
  for (const run of runs.filter((one) => one.curves[name])) {
    const command = run.settings.command, known = (panels[command] || {})[name];
    const { title, unit } = known || { title: name, unit: "" };
    const key = known ? `${title} ${unit}` : `of ${command}`;
    if (!found.has(key)) found.set(key, { name, title, unit, known: Boolean(known), runs: [], commands: new Set() });
    found.get(key).runs.push(run);
    found.get(key).commands.add(command);
  }
  const list = [...found.values()];
  for (const one of list) {
    const by = list.length > 1 ? [...one.commands].join(", ") : "";
    one.words = [one.unit, one.known ? name : "", by].filter(Boolean).join(" · ");
  }
  return list;
}

function curve(quantity) {
  const axis = byId("axis").value, logarithmic = byId("logarithmic").checked, { name, title, words } = quantity;
  const allowed = (value) => !logarithmic || value > 0;
  const lines = quantity.runs.filter((run) => shown[runs.indexOf(run)] && run.axes[axis]).map((run) => {
    const weight = isSparse(run, name) ? 0 : +byId("smoothing").value, ys = run.curves[name];
    const smoothed = weight ? smooth(ys.map((value) => (allowed(value) ? value : null)), weight) : ys;
    return { run, weight, xs: run.axes[axis], ys, smoothed, band: run.bands[name], gap: run.gaps[name], breaks: (run.gaps[name] || { at: [] }).at };
  });
  if (!lines.length) return null;
  const x = scale(lines.flatMap((line) => line.xs.filter((_, index) => line.ys[index] !== null)), LEFT, WIDTH - RIGHT);
  const all = lines.flatMap((line) => line.ys);
  if (!all.some((value) => value !== null && allowed(value))) return panel(title, words, nothing("no value above 0"));
  const y = scale(all, HEIGHT - BOTTOM, TOP, logarithmic);
  const svg = frame(x, y);
  for (const line of lines) {
    const pen = { stroke: line.run.color, "stroke-dasharray": line.run.dash };
    if (line.band) {
      const [low, high] = [line.band.low, line.band.high].map((ys) => pieces(line.xs, ys, x, y, () => true, line.breaks));
      svg.append(draw("path", { class: "band", d: area(high, low), style: `fill:${line.run.color}` }));
    }
    if (line.weight) svg.append(draw("path", { class: "faint", d: path(line.xs, line.ys, x, y, allowed, line.breaks), ...pen }));
    svg.append(draw("path", { d: path(line.xs, line.smoothed, x, y, allowed, line.breaks), ...pen }));
    if (isSparse(line.run, name)) dots(svg, line, x, y, allowed);
  }
  const box = panel(title, words, svg, (at) => lines.flatMap((line) => nearest(line, x, at)));
  const shades = [...new Set(lines.filter((line) => line.band).map((line) => line.band.what))];
  box.append(...shades.map((what) => make("div", { class: "dim" }, `Shade: ${what}.`)));
  box.append(...lines.filter((line) => line.gap).map((line) => make("div", { class: "dim" }, notFinite(line.run, line.gap))));
  return box;
}

function nothing(text) {
  const svg = canvas();
  svg.append(draw("text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, text));
  return svg;
}

function notFinite(run, gap) {
  return `${runs.length > 1 ? `${run.name}: ` : ""}${number(gap.count)} of ${number(gap.of)} values not finite`;
}

// Whether this is an end of an interval, which goes with its middle.
function isEnd(run, name) {
  const middle = name.replace(/_(low|high)$/, "");
  return middle !== name && Boolean(run.curves[middle] || run.gaps[middle]);
}

// Metrics that have no curve, as none of their values is finite.
function drawnNowhere() {
  return runs.filter((run, index) => shown[index]).flatMap((run) => Object.entries(run.gaps)
    .filter(([name]) => !run.curves[name] && !isEnd(run, name))
    .map(([name, gap]) => make("p", { class: "dim" }, `${name} has no curve. ${notFinite(run, gap)}.`)));
}

function dots(svg, line, x, y, allowed) {
  line.ys.forEach((value, index) => {
    if (value === null || !allowed(value)) return;
    svg.append(draw("circle", { cx: x.place(line.xs[index]), cy: y.place(value), r: 3, fill: line.run.color }));
  });
}

function nearest(line, x, at) {
  let best = -1, distance = Infinity;
  line.xs.forEach((value, index) => {
    const away = Math.abs(x.place(value) - at);
    if (line.ys[index] !== null && away < distance) { best = index; distance = away; }
  });
  if (best < 0) return [];
  const text = `${line.run.name}: ${number(line.ys[best])} at ${number(line.xs[best])}`;
  return [{ at: x.place(line.xs[best]), color: line.run.color, text }];
}

function drawRuns() {
  const cards = runs.map((run, index) => {
    const box = make("input", { type: "checkbox", checked: "" });
    box.addEventListener("change", () => { shown[index] = box.checked; drawAll(); });
    const facts = Object.entries(run.summary).filter(([name]) => !/tokens_per_second|^(rollout|update)_/.test(name));
    const list = facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, number(value))]);
    const state = run.state ? [make("div", { class: "dim" }, run.state)] : [];
    const mean = run.together > 1 ? [make("div", { class: "dim" }, `A point of its curves is the mean of ${run.together} steps.`)] : [];
    const card = make("div", { class: "card run" }, make("label", {}, box, " ", run.name), ...state, make("dl", {}, ...list), ...mean);
    card.style.setProperty("--color", run.color);
    if (run.dash !== "none") card.style.borderLeftStyle = "dashed";
    return card;
  });
  byId("runs").append(make("div", { class: "cards" }, ...cards));
}

// Which line is whose, where the curves are.
function drawKey() {
  byId("key").replaceChildren(...(runs.length < 2 ? [] : runs.filter((_, index) => shown[index]).map((run) => {
    const svg = draw("svg", { viewBox: "0 0 24 8" });
    svg.append(draw("path", { d: "M0 4L24 4", stroke: run.color, "stroke-dasharray": run.dash }));
    return make("span", {}, svg, run.name);
  })));
}

function drawCurves() {
  const wanted = byId("find").value.trim().toLowerCase();
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))]
    .filter((name) => !/_std$/.test(name) || !runs.some((run) => run.curves[name.replace(/_std$/, "")]));
  const rank = ({ name }) => (LEAD.includes(name) ? LEAD.indexOf(name) : LEAD.length);
  const all = names.flatMap(quantities);
  const first = all.filter((one) => one.known).sort((one, other) => rank(one) - rank(other));
  const rest = all.filter((one) => !one.known).sort((one, other) => (one.name < other.name ? -1 : 1));
  const found = (list) => list.filter((one) => `${one.name} ${one.title}`.toLowerCase().includes(wanted));
  const boxes = (list) => make("div", { class: "panels" }, ...found(list).map(curve).filter(Boolean));
  const open = byId("rest") ? byId("rest").open : false;
  const parts = [make("h2", {}, "Curves"), ...drawnNowhere(), boxes(first)];
  if (!found(all).length) parts.push(make("p", { class: "dim" }, all.length ? `No metric is called ${wanted}.` : "There are no metrics yet."));
  if (rest.length) {
    const more = make("details", { id: "rest" }, make("summary", {}, `${rest.length} further metrics`));
    const fill = () => { if (more.open && more.children.length === 1) more.append(boxes(rest)); };
    more.addEventListener("toggle", fill);
    more.open = open || (wanted !== "" && found(rest).length > 0);
    fill();
    parts.push(more);
  }
  byId("curves").replaceChildren(...parts);
}

// Of scores that are a few values, the shares of completions that have each, on top of each other.
function shares(run, spread) {
  const x = scale(spread.steps, LEFT, WIDTH - RIGHT), y = scale([0, 1], HEIGHT - BOTTOM, TOP);
  const svg = frame(x, y), { values, rows } = spread.shares;
  let below = spread.steps.map(() => 0);
  values.forEach((value, place) => {
    const above = below.map((share, index) => share + rows[index][place]);
    const [up, down] = [above, below].map((ys) => pieces(spread.steps, ys, x, y, () => true));
    const opacity = 0.15 + (0.75 * place) / Math.max(values.length - 1, 1);
    svg.append(draw("path", { d: area(up, down), style: `fill:${run.color};opacity:${opacity}` }));
    below = above;
  });
  const read = (at) => values.flatMap((value, place) =>
    nearest({ run, xs: spread.steps, ys: rows.map((row) => row[place]) }, x, at)
      .map((found) => ({ ...found, text: `${spread.title.toLowerCase()} ${number(value)}: ${found.text}` })));
  return panel(`${spread.title} · ${run.name}`, `share of completions; darker is higher`, svg, read);
}

function fan(run, spread) {
  if (spread.shares) return shares(run, spread);
  const x = scale(spread.steps, LEFT, WIDTH - RIGHT), y = scale(spread.deciles.flat(), HEIGHT - BOTTOM, TOP);
  const svg = frame(x, y);
  for (let low = 0; low < 5; low += 1) {
    const [up, down] = [10 - low, low].map((place) => pieces(spread.steps, spread.deciles.map((row) => row[place]), x, y, () => true));
    svg.append(draw("path", { class: "band", d: area(up, down), style: `fill:${run.color}` }));
  }
  svg.append(draw("path", { d: path(spread.steps, spread.deciles.map((row) => row[5]), x, y, () => true), stroke: run.color }));
  const read = (at) => {
    const line = { run, xs: spread.steps, ys: spread.deciles.map((row) => row[5]) };
    return nearest(line, x, at).map((found) => {
      const row = spread.deciles[spread.steps.findIndex((step) => Math.abs(x.place(step) - found.at) < 1e-6)];
      return { ...found, text: `${found.text} (middle); a tenth below ${number(row[1])}, a tenth above ${number(row[9])}` };
    });
  };
  return panel(`${spread.title} · ${run.name}`, `${spread.unit}; shades are deciles, the line the middle`, svg, read);
}

function histogram(run, spread, look) {
  const [step, values] = spread.looks[look];
  const all = spread.looks.flatMap(([, others]) => others);
  const x = scale(all, LEFT + 6, WIDTH - RIGHT - 6), bins = 24, counts = new Array(bins).fill(0);
  const width = (x.high - x.low) / bins;
  for (const value of values) counts[Math.min(bins - 1, Math.floor((value - x.low) / width))] += 1 / values.length;
  const y = scale([0, ...counts], HEIGHT - BOTTOM, TOP);
  const svg = frame(x, y);
  counts.forEach((share, index) => {
    const left = x.place(x.low + index * width), right = x.place(x.low + (index + 1) * width);
    const top = y.place(share);
    svg.append(draw("rect", { x: left + 0.5, y: top, width: Math.max(right - left - 1, 1), height: HEIGHT - BOTTOM - top, fill: run.color }));
  });
  return panel(`${spread.title} at step ${step} · ${run.name}`, `share of ${values.length} ${spread.title === "Return" ? "seeds" : "completions"}`, svg);
}

function solvedGroups(run) {
  const { steps, none, all } = run.groups;
  const x = scale(steps, LEFT, WIDTH - RIGHT), y = scale([0, 1], HEIGHT - BOTTOM, TOP);
  const svg = frame(x, y);
  svg.append(draw("path", { d: path(steps, all, x, y, () => true), stroke: run.color }));
  svg.append(draw("path", { d: path(steps, none, x, y, () => true), stroke: run.color, "stroke-dasharray": "4 4" }));
  const read = (at) => [[all, "every completion right"], [none, "none right"]].flatMap(([ys, what]) =>
    nearest({ run, xs: steps, ys }, x, at).map((found) => ({ ...found, text: `${what}: ${found.text}` })));
  return panel(`Prompts that teach nothing · ${run.name}`, "share of prompts: all right (line), none right (dashes)", svg, read);
}

function drawSpreads() {
  const chosen = runs.filter((run, index) => shown[index]);
  if (!chosen.some((run) => run.spreads.length)) { byId("spreads").replaceChildren(); return; }
  const fans = chosen.flatMap((run) => [
    // Of one step there is its histogram.
    ...run.spreads.filter((spread) => spread.steps.length > 1).map((spread) => fan(run, spread)),
    ...(run.groups ? [solvedGroups(run)] : []),
  ]);
  const most = Math.max(...chosen.flatMap((run) => run.spreads.map((spread) => spread.looks.length)));
  const slider = make("input", { type: "range", min: 0, max: most - 1, value: most - 1, "aria-label": "step" });
  const bars = make("div", { class: "panels" });
  const fill = () => {
    const share = +slider.value / Math.max(most - 1, 1);
    bars.replaceChildren(...chosen.flatMap((run) => run.spreads.map((spread) =>
      histogram(run, spread, Math.round(share * (spread.looks.length - 1))))));
  };
  slider.addEventListener("input", fill);
  fill();
  byId("spreads").replaceChildren(make("h2", {}, "Distributions"), make("div", { class: "panels" }, ...fans),
    make("div", { class: "row" }, make("label", {}, "step of the histograms ", slider)), bars);
}

function choice(id, options, change) {
  const select = make("select", { id });
  options.forEach(([value, text]) => select.append(make("option", { value }, text)));
  select.addEventListener("change", change);
  return select;
}

function drawPrompts() {
  const able = runs.map((run, index) => [index, run.name]).filter(([index]) => runs[index].prompts.lines.length);
  if (!able.length) return;
  const table = make("div", { class: "scroll" }), words = make("p", { class: "dim" });
  const fill = () => {
    const run = runs[+which.value], { lines, of, solved, steps } = run.prompts;
    const top = Math.max(...lines.map((line) => line.mean), solved ? 1 : 1e-9);
    words.textContent = `${number(of)} prompts in ${number(steps)} recorded steps` + (of > lines.length ? `; the ${lines.length} hardest are listed.` : ".")
      + (lines.some((line) => line.text === null) ? " A number in place of a text: the run keeps the texts of the prompts that come first, up to half a million characters." : "");
    const head = make("tr", {}, ...["prompt", solved ? "right" : "mean score", "completions", "visits, first to last"].map((text) => make("th", {}, text)));
    const body = lines.map((line) => {
      const bar = make("b");
      bar.style.width = `${Math.max(0, Math.min(1, line.mean / top)) * 100}%`;
      return make("tr", {}, make("td", { class: line.text === null ? "dim" : "text" }, line.text ?? line.name), make("td", {}, make("span", { class: "share" }, bar), solved ? `${Math.round(line.mean * 100)} %` : number(line.mean)),
        make("td", {}, line.completions), make("td", {}, visits(line.visits, run.color), ` ${line.visits.length}`));
    });
    table.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  };
  const which = choice("of-prompts", able, fill);
  byId("prompts").append(make("h2", {}, "Prompts"), make("div", { class: "row" }, which), words, table);
  fill();
}

function visits(points, color) {
  const svg = draw("svg", { viewBox: "0 0 90 22", class: "visits" });
  const x = scale(points.map(([step]) => step), 3, 87), y = scale([0, 1, ...points.map(([, value]) => value)], 19, 3);
  svg.append(draw("path", { d: path(points.map(([step]) => step), points.map(([, value]) => value), x, y, () => true), stroke: color }));
  points.forEach(([step, value]) => svg.append(draw("circle", { cx: x.place(step), cy: y.place(value), r: 1.8, fill: color })));
  return svg;
}

// What a token is colored by: a number from −1 to 1, and its words.
const SHADES = {
  log_probs: { title: "log-probability when drawn", low: "p near 0", high: "p = 1", shade: (value) => -Math.min(1, -value / 5) },
  ratios: { title: "ratio after the update", low: "half as likely", high: "twice as likely", shade: (value) => Math.max(-1, Math.min(1, Math.log2(value))) },
  advantages: { title: "advantage", low: "held down", high: "pushed up", shade: (value) => Math.max(-1, Math.min(1, value / 2)) },
};

function background(shade) {
  return `rgba(var(${shade < 0 ? "--low" : "--high"}), ${(Math.abs(shade) * 0.6).toFixed(3)})`;
}

function tokenText(row, index) {
  const parts = [`token ${index + 1} ${JSON.stringify(row.pieces[index])}`];
  if (row.log_probs[index] === null) return `${parts[0]}: not chosen by the policy`;
  parts.push(`log p ${number(row.log_probs[index])}`, `p ${number(Math.exp(row.log_probs[index]))}`, `ratio ${number(row.ratios[index])}`);
  if (row.advantages) parts.push(`advantage ${number(row.advantages[index])}`);
  return parts.join(", ");
}

function completion(row, by, said) {
  const tokens = make("div", { class: "tokens" });
  row.pieces.forEach((piece, index) => {
    const span = make("span", {}, piece || "·");
    const value = row[by] ? row[by][index] : null;
    if (row.log_probs) {
      span.title = tokenText(row, index);
      span.tabIndex = 0;
      const say = () => { said.textContent = tokenText(row, index); };
      span.addEventListener("pointerenter", say);
      span.addEventListener("focus", say);
    }
    if (value !== null && value !== undefined) span.style.background = background(SHADES[by].shade(value));
    tokens.append(span);
  });
  if (row.left_out) tokens.append(make("span", { class: "dim" }, ` … and ${number(row.left_out)} tokens that were not kept`));
  const count = row.log_probs ? [make("span", {}, `${number(row.pieces.length + row.left_out)} tokens`)] : [];
  return make("div", { class: "card completion" }, make("div", { class: "head" }, make("span", {}, `score ${number(row.reward)}`), ...count), tokens);
}

function drawCompletions() {
  const able = runs.map((run, index) => [index, run.name]).filter(([index]) => runs[index].completions.length);
  if (!able.length) return;
  const said = make("div", { class: "token dim" }), list = make("div"), step = make("input", { type: "range", min: 0, "aria-label": "step" });
  const label = make("span"), legend = make("span", { class: "dim" }), bys = make("span");
  let by = "advantages";
  const fill = () => {
    const look = runs[+which.value].completions[+step.value];
    label.textContent = `step ${look.step}`;
    said.textContent = look.rows[0].log_probs ? "Point at a token." : "";
    let prompt = null;
    list.replaceChildren(...look.rows.flatMap((row) => {
      const asked = row.prompt === prompt ? [] : [make("div", { class: "prompt" }, row.prompt)];
      prompt = row.prompt;
      return [...asked, completion(row, by, said)];
    }));
    const scaleBar = make("span", { class: "legend" });
    const at = (shade) => background(shade);
    scaleBar.style.background = by === "log_probs" ? `linear-gradient(90deg, ${at(-1)}, ${at(-0.001)})` : `linear-gradient(90deg, ${at(-1)}, transparent, ${at(1)})`;
    legend.replaceChildren(...(look.rows[0].log_probs ? [SHADES[by].low, scaleBar, SHADES[by].high] : []));
  };
  const enter = () => {
    const run = runs[+which.value], looks = run.completions;
    const there = Object.keys(SHADES).filter((name) => looks.some((look) => look.rows.some((row) => row[name])));
    if (!there.includes(by)) by = there[0];
    const select = choice("by", there.map((name) => [name, SHADES[name].title]), () => { by = select.value; fill(); });
    select.value = by;
    bys.replaceChildren(...(there.length ? ["color by ", select] : []));
    step.max = looks.length - 1;
    step.value = looks.length - 1;
    fill();
  };
  const which = choice("of-completions", able, enter);
  step.addEventListener("input", fill);
  byId("completions").append(make("h2", {}, "Completions"),
    make("div", { class: "row" }, which, make("label", {}, step, " ", label), make("label", {}, bys), legend), said, list);
  enter();
}

function drawSettings() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.settings)))];
  const differ = names.filter((name) => new Set(runs.map((run) => run.settings[name])).size > 1);
  const table = (list) => make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, make("th", {}, "setting"), ...runs.map((run) => make("th", {}, run.name)))),
    make("tbody", {}, ...list.map((name) => make("tr", {}, make("td", {}, name), ...runs.map((run) => make("td", { class: "text" }, run.settings[name] === "null" ? "none" : run.settings[name] ?? "–")))))));
  const parts = [make("h2", {}, "Settings")];
  if (runs.length > 1) parts.push(...(differ.length ? [make("p", { class: "dim" }, "Those that differ:"), table(differ)] : [make("p", { class: "dim" }, "All are the same.")]));
  parts.push(make("details", {}, make("summary", {}, `All ${names.length} settings`), table(names)));
  byId("settings").append(...parts);
}

function drawAll() { drawKey(); drawCurves(); drawSpreads(); }

function choose(scheme) { document.documentElement.dataset.scheme = scheme; }

const TITLES = { step: "steps", environment_steps: "environment steps", wall_seconds: "seconds" };
for (const axis of Object.keys(TITLES)) {
  if (runs.some((run) => run.axes[axis])) byId("axis").append(make("option", { value: axis }, TITLES[axis]));
}
if (runs.every((run) => run.axes.environment_steps)) byId("axis").value = "environment_steps";
const dark = window.matchMedia("(prefers-color-scheme: dark)");
choose(dark.matches ? "dark" : "light");
dark.addEventListener("change", () => choose(dark.matches ? "dark" : "light"));
byId("scheme").addEventListener("click", () => choose(document.documentElement.dataset.scheme === "dark" ? "light" : "dark"));
byId("smoothing").addEventListener("input", () => { byId("smoothed").textContent = (+byId("smoothing").value).toFixed(2); drawCurves(); });
byId("axis").addEventListener("change", drawCurves);
byId("logarithmic").addEventListener("change", drawCurves);
byId("find").addEventListener("input", drawCurves);
document.title = `Report · ${runs.map((run) => run.name).join(", ")}`;
drawRuns();
drawAll();
drawPrompts();
drawCompletions();
drawSettings();
