// The overview: which table, the plot, and the table with its columns, filter and order. All numbers come as data.
"use strict";
(() => {
  const { el, svg, load, state, remember, recordPage } = board;
  const $ = id => document.getElementById(id);
  const TEXT = 0, CHANGE = 1, INTERVAL = 2, VALUE = 3, LOW = 4, HIGH = 5, N = 6, D = 7, DLOW = 8, DHIGH = 9, P = 10, MARKS = 11, SD = 12;
  const BEST = 1, BETTER = 2, WORSE = 4, CHANCE = 8;
  const VIRTUAL = 150;  // rows from which only those in sight are made
  const sections = board.get("index", "sections");
  let head = null, rows = [], shown = [], heights = 0, drawn = "";

  // --- which table ---------------------------------------------------------------------------------------------------

  const how = p => [p.mode || "no mode", `${p.edits} edit${p.edits === 1 ? "" : "s"}`, p.edit_batch_size ? `${p.edit_batch_size} at a time` : "",
    p.dtype, `data: ${p.data}`, p.limit ? `at most ${p.limit} documents` : ""].filter(Boolean).join(" · ");
  const unique = list => [...new Set(list)];
  const options = (select, values, chosen) => {
    select.replaceChildren(...values.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
  };
  const choose = wanted => {
    const now = sections.find(s => s.slug === wanted) || sections[0];
    if (!now) { $("about").textContent = "No record is complete."; return; }
    const p = now.protocol, sets = sections.filter(s => s.protocol.model === p.model);
    const hows = sets.filter(s => s.protocol.edit_set === p.edit_set);
    options($("pick-model"), unique(sections.map(s => s.protocol.model)).map(m => [m, m]), p.model);
    options($("pick-set"), unique(sets.map(s => s.protocol.edit_set)).map(m => [m, m]), p.edit_set);
    const plain = hows.map(s => how(s.protocol));
    options($("pick-how"), hows.map((s, i) => [s.slug, plain.filter(t => t === plain[i]).length > 1 ? `${plain[i]} (${s.slug.slice(-6)})` : plain[i]]), now.slug);
    show(now);
  };
  $("pick-model").addEventListener("change", e => pick(s => s.protocol.model === e.target.value));
  $("pick-set").addEventListener("change", e => pick(s => s.protocol.model === $("pick-model").value && s.protocol.edit_set === e.target.value));
  $("pick-how").addEventListener("change", e => pick(s => s.slug === e.target.value));
  $("pick").addEventListener("submit", e => e.preventDefault());
  const pick = test => {
    const found = sections.find(test);
    history.replaceState(null, "", `#s=${encodeURIComponent(found.slug)}`);
    choose(found.slug);
  };

  const show = async now => {
    $("about").textContent = `${now.title}: ${now.count} row${now.count === 1 ? "" : "s"}`;
    try {
      head = await load("section", now.slug);
      rows = [];
      for (let i = 0; i < head.chunks; i++) {
        const chunk = await load("rows", `${now.slug}.${i}`);
        if (head.slug !== now.slug) return;  // another table was chosen meanwhile
        rows = rows.concat(chunk);
        if (i === 0) { $("board").hidden = false; frame(); }
        else if (i === head.chunks - 1) refresh();  // once for all the rest: each time costs a table and a plot
      }
    } catch (error) { $("about").textContent = error.message; }
  };

  // --- columns -------------------------------------------------------------------------------------------------------

  const arrow = better => (better === null ? "" : better ? " ↑" : " ↓");
  const text = value => (value === null || value === undefined ? "" : String(value));
  const fixed = [
    { key: "editor", name: "editor", sort: r => r.editor, left: true },
    { key: "rank", name: "rank", sort: r => r.rank ? r.rank[0] + r.rank[1] / 1e6 : null, up: true, note: "The ranks by the first column that cannot be excluded: one more than the rows that are surely better, up to those that are not surely worse (Holm over all pairs)." },
    { key: "label", name: "label", sort: r => r.label, left: true },
    { key: "seeds", name: "seeds", sort: r => r.seeds.length },
    { key: "badge", name: "checked", sort: r => r.badge, left: true },
  ];
  const costs = [
    { key: "seconds", name: "seconds", sort: r => r.seconds, note: "Of the whole run, measuring included." },
    { key: "mib", name: "peak MiB", sort: r => r.mib, note: "The largest over the whole run, measuring included." },
  ];
  const columns = () => [fixed[0], ...head.columns.map((c, i) => ({ key: c.key, name: c.task, below: c.metric + arrow(c.better), metric: c, place: i,
    sort: r => r.cells[i][VALUE] ?? null })), ...published(), ...fixed.slice(1), ...costs];
  const published = () => head.references.map((r, i) => ({ key: `published ${r.metric} [${r.name}]`, name: "published", below: `${r.metric} [${r.name}]`, note: r.note, reference: i, base: r.base,
    sort: row => row.references[i] ? row.references[i][1] : null }));
  const quoted = (found, c) => found ? el("td", { class: "number", title: c.note }, el("span", { class: "value" }, found[0]), found[2] ? el("small", {}, found[2]) : null) : el("td", { class: "none" }, "–");
  const hidden = () => new Set((state().get("hide") || "").split("~").filter(Boolean));
  const visible = () => { const off = hidden(); return columns().filter(c => c.key === "editor" || !off.has(c.key)); };
  const order = () => { const said = state().get("sort") || ""; const cut = said.lastIndexOf("."); return cut < 0 ? null : { key: said.slice(0, cut), up: said.slice(cut + 1) === "up" }; };

  const frame = () => {
    $("filter").value = state().get("q") || "";
    $("notes").replaceChildren(...head.notes.map(note => el("li", {}, note)));
    $("orders").replaceChildren(...head.orders.map(note => el("li", {}, note)));
    $("column-list").replaceChildren(...columns().slice(1).map(c => {
      const box = el("input", { type: "checkbox", checked: !hidden().has(c.key), onchange: () => {
        const off = hidden();
        box.checked ? off.delete(c.key) : off.add(c.key);
        remember({ hide: [...off].join("~") });
        refresh();
      } });
      return el("label", {}, box, ` ${c.below ? c.key : c.name}`);
    }));
    const axes = [["abilities", "mean change of other tasks"], ...head.columns.map((c, i) => [String(i), c.key + arrow(c.better)]), ["seconds", "seconds"]];
    const some = head.abilities ? axes : axes.slice(1);
    options($("axis-y"), some, state().get("y") || String(head.gain));
    options($("axis-x"), some, state().get("x") || String(head.cost));
    refresh();
    panel();
  };
  $("axis-y").addEventListener("change", e => { remember({ y: e.target.value }); plot(); });
  $("axis-x").addEventListener("change", e => { remember({ x: e.target.value }); plot(); });
  $("axes").addEventListener("submit", e => e.preventDefault());
  $("filter").addEventListener("input", e => { remember({ q: e.target.value }); refresh(); });

  // --- the table -----------------------------------------------------------------------------------------------------

  const refresh = () => {
    const words = (state().get("q") || "").toLowerCase().split(/\s+/).filter(Boolean);
    const said = row => `${row.editor} ${row.label} ${row.badge} ${row.records.join(" ")}`.toLowerCase();
    shown = rows.filter(row => words.every(word => said(row).includes(word)));
    const by = order(), column = by && columns().find(c => c.key === by.key);
    if (column) {
      const empty = v => v === null || v === undefined || v === "";
      shown.sort((a, b) => {
        const x = column.sort(a), y = column.sort(b);
        if (empty(x) || empty(y)) return empty(x) - empty(y);
        const d = typeof x === "number" ? x - y : String(x).localeCompare(String(y));
        return by.up ? d : -d;
      });
    }
    $("shown").textContent = `${shown.length} of ${head.count} rows`;
    drawHead();
    drawn = "";
    drawRows();
    plot();
    $("ties").textContent = head.compared.length && grouped() && shown.some(r => r.group > 1) ? "A thick line: the rows below it are surely worse than the best row above the line, in the group that ends there. Rows between two lines cannot be told from the first of them." : "";
  };

  const drawHead = () => {
    const by = order();
    $("rows").tHead.replaceChildren(el("tr", {}, visible().map(c => {
      const direction = by && by.key === c.key ? (by.up ? "ascending" : "descending") : null;
      const told = c.metric ? [c.metric.definition, c.metric.test && `Differences: ${c.metric.test}.`].filter(Boolean).join(" ") : c.note || "";
      const turn = () => {
        const first = c.metric ? c.metric.better === false : true;
        remember({ sort: `${c.key}.${(direction === null ? first : direction === "descending") ? "up" : "down"}` });
        refresh();
        [...$("rows").tHead.querySelectorAll("button")].find(b => b.dataset.key === c.key).focus();
      };
      return el("th", { scope: "col", class: c.left ? "left" : null, "aria-sort": direction },
        el("button", { type: "button", title: told || null, "data-key": c.key, onclick: turn }, c.name, c.below ? el("small", {}, c.below) : null));
    })));
  };

  // A long name breaks where its parts join, before it breaks anywhere.
  const parts = name => name.split(/(?<=[+_\-/])/).map((part, i) => [i ? el("wbr") : null, part]);
  const names = row => [row.records.length === 1 ? el("a", { href: recordPage(row.records[0]) }, parts(row.editor)) : el("span", {}, parts(row.editor)),
    row.badge === "run here" ? null : [" ", el("span", { class: "badge" }, row.badge)]];
  const cellOf = (row, c, base) => {
    if (c.metric) return metricCell(base ? head.base[c.place] : row.cells[c.place], c, base);
    if (c.key === "editor") return el("th", { scope: "row" }, base ? "unedited" : names(row));
    if (c.reference !== undefined) return quoted(base ? c.base : row.references[c.reference], c);
    if (base) return el("td", {}, "");
    if (c.key === "rank") return el("td", {}, row.rank ? (row.rank[0] === row.rank[1] ? String(row.rank[0]) : `${row.rank[0]}–${row.rank[1]}`) : "");
    if (c.key === "seeds") return el("td", {}, row.records.length > 1
      ? row.records.map((name, i) => [i ? ", " : "", el("a", { href: recordPage(name), "aria-label": `seed ${row.seeds[i]}` }, String(row.seeds[i]))]) : text(row.seeds[0]));
    if (c.key === "seconds") return el("td", {}, row.seconds === null ? "" : row.seconds.toFixed(1));
    if (c.key === "mib") return el("td", {}, row.mib === null ? "" : row.mib.toFixed(0));
    return el("td", { class: "left" }, text(row[c.key]));
  };
  const told = (cell, c) => {
    if (cell.length < 3) return `${c.key}: ${cell[1]}`;
    const said = [`${c.key} ${cell[TEXT]}`, cell[LOW] !== null ? `[${cell[LOW]}, ${cell[HIGH]}]` : "", `n = ${cell[N]}`];
    if (cell[D] !== null) said.push(`edited minus unedited ${cell[CHANGE]} ${cell[INTERVAL]}`, cell[P] === null ? "no test" : `p = ${cell[P] < 0.001 ? "< 0.001" : cell[P].toFixed(3)}${c.metric.test ? ` (${c.metric.test})` : ""}`);
    if (cell[SD] !== null && cell[SD] !== undefined) said.push(`sd over seeds ${cell[SD].toFixed(3)}`);
    if (cell[MARKS] & BEST) said.push("significantly better than the second best");
    if (cell[MARKS] & CHANCE) said.push("the unedited model cannot be told from guessing");
    return `${said.filter(Boolean).join("; ")}. ${c.metric.definition || ""}`;
  };
  const metricCell = (cell, c, base) => {
    if (cell.length < 3) return el("td", { class: "none", title: cell[1] }, cell[TEXT]);
    const marks = cell[MARKS], way = marks & BETTER ? "better" : marks & WORSE ? "worse" : "";
    const value = marks & BEST ? el("b", {}, cell[TEXT]) : cell[TEXT];
    const made = el("td", { class: `number ${way}`.trim(), title: told(cell, c) }, el("span", { class: "value" }, value, marks & CHANCE ? "†" : ""));
    if (cell[CHANGE] || cell[INTERVAL]) made.append(el("small", {}, cell[CHANGE] ? el("span", { class: "change" }, way === "better" ? "▲ " : way === "worse" ? "▼ " : "", cell[CHANGE], " ") : null, el("span", { class: "interval" }, cell[INTERVAL])));
    return made;
  };
  const grouped = () => !order() && !(state().get("q") || "");
  const starts = row => grouped() && row.group > 1 && row.at > 0 && shown[row.at - 1].group !== row.group;
  const rowOf = (row, cols, base) => el("tr", { class: base ? "base" : starts(row) ? "group" : null, "aria-rowindex": base ? 2 : row.at + 3 }, cols.map(c => cellOf(row, c, base)));

  const drawRows = () => {
    const body = $("rows").tBodies[0], cols = visible(), scroll = $("scroll");
    shown.forEach((row, i) => { row.at = i; });
    const virtual = shown.length > VIRTUAL;
    scroll.classList.toggle("tall", virtual);
    $("rows").setAttribute("aria-rowcount", shown.length + 2);
    if (!virtual) { body.replaceChildren(rowOf(null, cols, true), ...shown.map(row => rowOf(row, cols))); return; }
    const each = heights || 56, from = Math.max(0, Math.floor(scroll.scrollTop / each) - 15), to = Math.min(shown.length, from + Math.ceil(scroll.clientHeight / each) + 30);
    if (`${from} ${to}` === drawn) return;
    drawn = `${from} ${to}`;
    const gap = height => el("tr", { class: "gap", "aria-hidden": "true" }, el("td", { colspan: cols.length, style: `height:${height}px` }));
    body.replaceChildren(rowOf(null, cols, true), gap(from * each), ...shown.slice(from, to).map(row => rowOf(row, cols)), gap((shown.length - to) * each));
    if (!heights) { heights = body.rows[2].getBoundingClientRect().height || 56; drawn = ""; drawRows(); }
  };
  $("scroll").addEventListener("scroll", () => { if (shown.length > VIRTUAL) requestAnimationFrame(drawRows); });

  // The note of a cell is said below the table where there is no pointer to hover with.
  $("rows").addEventListener("click", e => { const cell = e.target.closest("td[title]"); if (cell) $("cell").textContent = cell.title; });

  // --- any two rows --------------------------------------------------------------------------------------------------

  const P_ = { I: 0, J: 1, VALUE: 2, LOW: 3, HIGH: 4, P: 5, ADJUSTED: 6, APART: 7, NEEDED: 8 };
  const panel = () => {
    $("panel").hidden = !head.compared.length;
    if (!head.compared.length) return;
    options($("panel-metric"), head.compared.map(i => [String(i), head.columns[i].key + arrow(head.columns[i].better)]), String(head.compared[0]));
    if ($("panel").open) drawPanel();
  };
  const rowName = place => `${rows[place].editor}${rows[place].label ? ` ${rows[place].label}` : ""}`;
  const threeOf = v => { const t = v.toFixed(3); return Number(t) === 0 ? t.replace("-", "") : v > 0 ? `+${t}` : t; };
  const pOf = p => p < 0.001 ? "< 0.001" : p.toFixed(3);
  const drawPanel = async () => {
    const column = Number($("panel-metric").value), wanted = $("panel-row").value;
    let found;
    try { found = (await load("pairs", `${head.slug}.pairs`))[column]; } catch (error) { $("panel-said").textContent = error.message; return; }
    const c = head.columns[column], places = found.rows.map(r => r[0]), one = places.includes(Number(wanted)) && wanted !== "" ? Number(wanted) : places[0];
    options($("panel-row"), places.map(place => [String(place), rowName(place)]), String(one));
    $("panel-said").textContent = `${found.test}, n = ${found.n}; p adjusted for the ${found.pairs.length} pairs of the column by Holm's method.${places.length < head.count ? ` ${places.length} of ${head.count} rows are compared.` : ""}`;
    const against = place => found.pairs.find(p => (p[0] === one && p[1] === place) || (p[0] === place && p[1] === one));
    $("panel-rows").replaceChildren(el("thead", {}, el("tr", {}, ["row", `minus ${rowName(one)}`, "p adjusted", "n needed", "rank", "rank drawn", "first"].map((name, i) => el("th", { scope: "col" }, name, i === 1 ? el("small", {}, "95 % interval") : null)))),
      el("tbody", {}, found.rows.map(([place, best, worst, low, high, first]) => {
        const pair = place === one ? null : against(place), turned = pair && pair[0] !== one, sign = turned ? -1 : 1;
        const value = pair && sign * pair[P_.VALUE], ends = pair && (turned ? [-pair[P_.HIGH], -pair[P_.LOW]] : [pair[P_.LOW], pair[P_.HIGH]]);
        const way = pair && pair[P_.APART] ? ((value > 0) === c.better ? "better" : "worse") : "";
        const link = pair && el("a", { href: `compare.html#${new URLSearchParams({ a: rows[one].records[0], b: rows[place].records[0] })}` }, rowName(place));
        return el("tr", { class: way || null }, el("th", { scope: "row" }, pair ? link : rowName(place)),
          el("td", {}, pair ? [el("span", { class: "change" }, way === "better" ? "▲ " : way === "worse" ? "▼ " : "", threeOf(value)), el("small", { class: "interval" }, `[${threeOf(ends[0])}, ${threeOf(ends[1])}]`)] : "–"),
          el("td", {}, pair ? pOf(pair[P_.ADJUSTED]) : ""), el("td", {}, pair && !pair[P_.APART] && pair[P_.NEEDED] ? String(pair[P_.NEEDED]) : ""),
          el("td", {}, best === worst ? String(best) : `${best}–${worst}`), el("td", {}, low === high ? low.toFixed(1).replace(".0", "") : `${low.toFixed(1).replace(".0", "")}–${high.toFixed(1).replace(".0", "")}`), el("td", {}, `${(100 * first).toFixed(0)} %`));
      })));
  };
  $("panel").addEventListener("toggle", () => { if ($("panel").open) drawPanel(); });
  for (const id of ["panel-metric", "panel-row"]) $(id).addEventListener("change", drawPanel);
  $("panel-pick").addEventListener("submit", e => e.preventDefault());

  // --- the plot ------------------------------------------------------------------------------------------------------

  const point = (row, axis) => {
    if (axis === "abilities") return row.abilities;
    if (axis === "seconds") return row.seconds === null ? null : [row.seconds, row.seconds, row.seconds];
    const c = row.cells[Number(axis)];
    if (!c || c.length < 3) return null;
    return c[D] === null ? null : [c[D], c[DLOW] ?? c[D], c[DHIGH] ?? c[D]];
  };
  const axisName = axis => axis === "abilities" ? "mean change of other tasks" : axis === "seconds" ? "seconds" : `change of ${head.columns[Number(axis)].key}`;
  const betterAxis = axis => axis === "abilities" ? true : axis === "seconds" ? false : head.columns[Number(axis)].better;
  const ticks = (low, high) => {
    const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map(k => k * power).find(s => s >= raw);
    const found = [];
    for (let t = Math.ceil(low / step) * step; t <= high + step / 1e6; t += step) found.push(Math.abs(t) < step / 1e6 ? 0 : t);
    return [found, Math.max(0, -Math.floor(Math.log10(step)))];
  };
  // What an axis shows. Up to 15 % of the points, far from all others, would press these together: they are put at the edge,
  // with their value. The others are those of the shortest stretch that holds enough, and who is near to them.
  const span = list => {
    const sorted = list.map(v => v[0]).sort((a, b) => a - b), n = sorted.length, enough = n - Math.floor(n * 0.15);
    let from = 0, to = n - 1;
    for (let i = 0; i + enough <= n; i++) if (sorted[i + enough - 1] - sorted[i] < sorted[to] - sorted[from]) [from, to] = [i, i + enough - 1];
    const near = (sorted[to] - sorted[from]) / 2;
    while (from > 0 && sorted[from] - sorted[from - 1] <= near) from--;
    while (to < n - 1 && sorted[to + 1] - sorted[to] <= near) to++;
    if (sorted[to] - sorted[from] > (sorted[n - 1] - sorted[0]) / 2) [from, to] = [0, n - 1];
    const [first, last] = [sorted[from], sorted[to]], kept = list.filter(v => v[0] >= first && v[0] <= last);
    let low = Math.min(...kept.map(v => v[1])), high = Math.max(...kept.map(v => v[2]));
    const size = high - low || 1;
    if (low > 0 && low < size / 2) low = 0;
    if (high < 0 && -high < size / 2) high = 0;
    return [low - size * 0.06, high + size * 0.06];
  };
  const clip = (v, low, high) => Math.max(low, Math.min(high, v));
  const plot = () => {
    const ax = $("axis-x").value, ay = $("axis-y").value, box = $("plot");
    const points = shown.map(row => ({ row, x: point(row, ax), y: point(row, ay) })).filter(p => p.x && p.y);
    $("plot-title").textContent = ax === String(head.cost) && ay === String(head.gain) ? "Gain against cost" : `${axisName(ay)} against ${axisName(ax)}`;
    if (!points.length) { box.replaceChildren(el("figcaption", {}, "No row has both numbers.")); return; }
    const width = Math.max(300, box.clientWidth || 700), height = Math.min(520, Math.max(320, width * 0.55)), m = { l: 52, r: 16, t: 26, b: 46 };
    const [x0, x1] = span(points.map(p => p.x)), [y0, y1] = span(points.map(p => p.y));
    const X = v => m.l + (clip(v, x0, x1) - x0) / (x1 - x0) * (width - m.l - m.r), Y = v => height - m.b - (clip(v, y0, y1) - y0) / (y1 - y0) * (height - m.t - m.b);
    for (const p of points) p.out = [p.x[0] < x0 || p.x[0] > x1 ? p.x[0] : null, p.y[0] < y0 || p.y[0] > y1 ? p.y[0] : null].filter(v => v !== null).map(v => v.toFixed(2)).join(", ");
    const [tx, dx] = ticks(x0, x1), [ty, dy] = ticks(y0, y1);
    const kids = [];
    for (const t of tx) kids.push(svg("line", { class: t === 0 ? "zero" : "grid", x1: X(t), x2: X(t), y1: m.t, y2: height - m.b }), svg("text", { class: "tick", x: X(t), y: height - m.b + 16, "text-anchor": "middle" }, t.toFixed(dx)));
    for (const t of ty) kids.push(svg("line", { class: t === 0 ? "zero" : "grid", y1: Y(t), y2: Y(t), x1: m.l, x2: width - m.r }), svg("text", { class: "tick", x: m.l - 6, y: Y(t) + 4, "text-anchor": "end" }, t.toFixed(dy)));
    const good = axis => { const b = betterAxis(axis); return b === null ? "" : b ? " (more is better →)" : " (← less is better)"; };
    kids.push(svg("text", { class: "axis", x: (m.l + width - m.r) / 2, y: height - 8, "text-anchor": "middle" }, axisName(ax) + good(ax)));
    const up = betterAxis(ay) === null ? "" : betterAxis(ay) ? "↑ better · " : "↓ better · ";
    kids.push(svg("text", { class: "axis", x: m.l, y: 14 }, up + axisName(ay)));
    const front = undominated(points, ax, ay), bare = points.length > VIRTUAL;
    for (const p of points) {
      const on = front.has(p);
      if (bare && !on) continue; // bars of thousands of rows would hide the points
      kids.push(svg("g", { class: on ? "bars on" : "bars" }, p.out ? null : svg("line", { x1: X(p.x[1]), x2: X(p.x[2]), y1: Y(p.y[0]), y2: Y(p.y[0]) }), p.out ? null : svg("line", { x1: X(p.x[0]), x2: X(p.x[0]), y1: Y(p.y[1]), y2: Y(p.y[2]) })));
    }
    const labels = place(points.slice().sort((a, b) => front.has(b) - front.has(a)).slice(0, points.length > 60 ? 20 : 60), X, Y, width, m, height);
    for (const p of points) {
      const name = `${p.row.editor}${p.row.label ? ` ${p.row.label}` : ""}`;
      const cx = X(p.x[0]), cy = Y(p.y[0]), look = `dot${front.has(p) ? " on" : ""}${p.out ? " out" : ""}`;
      const dot = p.out ? svg("rect", { x: cx - 4, y: cy - 4, width: 8, height: 8, transform: `rotate(45 ${cx} ${cy})`, class: look }) : svg("circle", { cx, cy, r: 4.5, class: look });
      dot.append(svg("title", {}, `${name}: ${axisName(ay)} ${p.y[0].toFixed(3)} [${p.y[1].toFixed(3)}, ${p.y[2].toFixed(3)}], ${axisName(ax)} ${p.x[0].toFixed(3)} [${p.x[1].toFixed(3)}, ${p.x[2].toFixed(3)}]`));
      kids.push(dot);
    }
    kids.push(...labels);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-labelledby": "plot-title plot-caption" }, kids);
    const best = [...front].map(p => p.row.editor), far = points.some(p => p.out) ? " A diamond at the edge lies outside the axes, at the value beside it." : "";
    box.replaceChildren(picture, el("figcaption", { id: "plot-caption" }, `Edited minus unedited, paired by document; bars are 95 % intervals. Filled: nothing else is as good in both (${unique(best).join(", ")}).${far}`));
  };
  // The points that no other is as good as in both and better than in one, in one walk from the best x to the worst.
  const undominated = (points, ax, ay) => {
    const sx = betterAxis(ax) === false ? -1 : 1, sy = betterAxis(ay) === false ? -1 : 1, found = new Set();
    let last = null, top = -Infinity, before = -Infinity; // the best y so far, and of the points that are better in x
    for (const p of points.slice().sort((a, b) => sx * (b.x[0] - a.x[0]) || sy * (b.y[0] - a.y[0]))) {
      const x = p.x[0], y = sy * p.y[0];
      if (x !== last) { before = top; last = x; }
      if (y > before && y >= top) found.add(p);
      top = Math.max(top, y);
    }
    return found;
  };
  const pen = document.createElement("canvas").getContext("2d");
  const widthOf = name => { pen.font = `12px ${getComputedStyle(document.body).fontFamily}`; return pen.measureText(name).width + 2; };
  const place = (points, X, Y, width, m, height) => {
    const taken = points.map(p => [X(p.x[0]) - 5, Y(p.y[0]) - 5, X(p.x[0]) + 5, Y(p.y[0]) + 5]), made = [];
    const free = box => box[0] >= m.l && box[2] <= width - 2 && box[1] >= m.t - 8 && box[3] <= height - m.b && !taken.some(t => t[0] < box[2] && t[2] > box[0] && t[1] < box[3] && t[3] > box[1]);
    for (const p of points) {
      const x = X(p.x[0]), y = Y(p.y[0]), plain = p.row.editor.length > 22 ? `${p.row.editor.slice(0, 21)}…` : p.row.editor, name = p.out ? `${plain} (${p.out})` : plain, w = widthOf(name), h = 12;
      const spots = [[x + 8, y - 6], [x - 8 - w, y - 6], [x - w / 2, y - 20], [x - w / 2, y + 8], [x + 8, y - 18], [x + 8, y + 6], [x - 8 - w, y - 18], [x - 8 - w, y + 6]];
      const spot = spots.find(([left, top]) => free([left, top, left + w, top + h]));
      if (!spot) continue;
      taken.push([spot[0], spot[1], spot[0] + w, spot[1] + h]);
      made.push(svg("text", { class: "name", x: spot[0], y: spot[1] + 10 }, name));
    }
    return made;
  };
  let waiting = 0;
  addEventListener("resize", () => { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(() => { if (head && rows.length) plot(); }); });
  addEventListener("hashchange", () => choose(state().get("s")));
  choose(state().get("s"));
})();
