// Two records side by side: what both were measured on, and the paired differences where they stand in one table.
"use strict";
(() => {
  const { el, load, state, remember, recordPage } = board;
  const $ = id => document.getElementById(id);
  const records = new Map(board.get("index", "records").map(r => [r.name, r]));
  const number = v => v === null || v === undefined ? "–" : v.toFixed(Math.abs(v) < 10 ? 3 : Math.abs(v) < 100 ? 2 : 1);
  const signed = v => { const text = number(v); return Number(text) === 0 ? text.replace("-", "") : v > 0 ? `+${text}` : text; };
  const shownP = p => p < 0.001 ? "< 0.001" : p.toFixed(3);
  let turn = 0;

  $("names").append(...[...records.keys()].map(name => el("option", { value: name })));
  const said = text => { $("said").textContent = text; };

  const sides = (a, b) => {
    for (const x of a.rows) for (const y of b.rows) if (x[0] === y[0]) return [x, y];
    return [a.rows[a.rows.length - 1], b.rows[b.rows.length - 1]];
  };
  const rowAt = async (head, place) => (await load("rows", `${head.slug}.${Math.floor(place / head.rows_a_chunk)}`))[place % head.rows_a_chunk];
  const pairOf = (pairs, column, i, j) => {
    const known = pairs && pairs[column];
    const found = known && known.pairs.find(p => (p[0] === i && p[1] === j) || (p[0] === j && p[1] === i));
    if (!found) return null;
    const turned = found[0] !== i, [, , value, low, high, p, adjusted, apart, needed] = found;
    return { value: turned ? -value : value, low: turned ? -high : low, high: turned ? -low : high, p, adjusted, apart, needed, n: known.n, test: known.test };
  };

  const show = async () => {
    const mine = ++turn, first = $("first").value, second = $("second").value;
    remember({ a: first, b: second });
    $("result").replaceChildren();
    if (!first || !second) { said("Choose two records; the lists offer what you type."); return; }
    const a = records.get(first), b = records.get(second);
    if (!a || !b) { said(`There is no record ${a ? second : first}.`); return; }
    if (!a.rows.length || !b.rows.length) { said(`${a.rows.length ? second : first} stands in no table: it is not complete, or nothing was edited.`); return; }
    try {
      const [x, y] = sides(a, b), heads = [await load("section", x[0]), await load("section", y[0])], same = x[0] === y[0];
      const rows = [await rowAt(heads[0], x[1]), await rowAt(heads[1], y[1])];
      const pairs = same && heads[0].compared.length ? await load("pairs", `${x[0]}.pairs`) : null;
      if (mine === turn) draw([a, b], heads, rows, same, pairs, [x[1], y[1]]);
    } catch (error) { said(error.message); }
  };

  const draw = (both, heads, rows, same, pairs, places) => {
    const means = rows.map((row, i) => row.records.length > 1 ? `${row.editor}: the mean of ${row.records.length} seeds. ` : "").join("");
    const paired = places[0] === places[1] && same ? "Both are the same row. " : same ? `Second minus first, paired by document; p is adjusted for all pairs of the column (Holm). ` : "They stand in different tables, so that their differences are not paired here. ";
    said(`${same ? `${heads[0].title}. ` : ""}${paired}${means}`);
    const key = c => `${c.task} ${c.metric} ${c.variant}`, others = new Map(heads[1].columns.map((c, i) => [key(c), i]));
    const lines = heads[0].columns.map((c, i) => ({ c, i, j: others.get(key(c)) })).filter(line => line.j !== undefined);
    const title = i => [el("a", { href: recordPage(both[i].name) }, rows[i].editor), rows[i].label ? ` ${rows[i].label}` : "", same ? "" : el("small", {}, heads[i].title)];
    const own = cell => el("td", { class: "value" }, cell[0], cell.length > 2 && cell[4] !== null ? el("small", {}, `[${number(cell[4])}, ${number(cell[5])}]`) : "");
    const body = lines.map(({ c, i, j }) => {
      const one = rows[0].cells[i], other = rows[1].cells[j], found = same ? pairOf(pairs, i, places[0], places[1]) : null;
      const way = found && found.apart && c.better !== null ? ((found.value > 0) === c.better ? "better" : "worse") : "";
      const told = found ? `${found.test}, n = ${found.n}, p = ${shownP(found.p)} before adjustment.${found.needed && !found.apart ? ` A true difference of this size would be found four times in five with n = ${found.needed}.` : ""}` : null;
      return el("tr", { class: way || null },
        el("th", { scope: "row", title: c.definition || null }, el("span", { class: "task" }, c.task), ` ${c.metric}`),
        el("td", { title: told }, found ? [el("span", { class: "change" }, way === "better" ? "▲ " : way === "worse" ? "▼ " : "", signed(found.value)), el("small", { class: "interval" }, `[${signed(found.low)}, ${signed(found.high)}]`)] : ""),
        el("td", {}, found ? shownP(found.adjusted) : ""), own(one), own(other),
        el("td", {}, found && !found.apart && found.needed ? String(found.needed) : ""));
    });
    const costs = [["seconds", rows[0].seconds, rows[1].seconds, 1], ["peak MiB", rows[0].mib, rows[1].mib, 0]].map(([name, u, v, digits]) => el("tr", {},
      el("th", { scope: "row" }, name), el("td", {}, u === null || v === null ? "" : el("span", { class: "change" }, `${v - u > 0 ? "+" : ""}${(v - u).toFixed(digits)}`)), el("td", {}), el("td", {}, u === null ? "" : u.toFixed(digits)), el("td", {}, v === null ? "" : v.toFixed(digits)), el("td", {})));
    $("result").append(el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Comparison" }, el("table", { class: "plain compare" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "metric"), el("th", { scope: "col" }, "second − first", el("small", {}, "95 % interval")), el("th", { scope: "col" }, "p adjusted"), el("th", { scope: "col" }, title(0)), el("th", { scope: "col" }, title(1)), el("th", { scope: "col" }, "n needed"))),
      el("tbody", {}, body, costs))));
    if (!lines.length) said("They have no metric in common.");
  };

  const read = () => { $("first").value = state().get("a") || ""; $("second").value = state().get("b") || ""; show(); };
  for (const id of ["first", "second"]) $(id).addEventListener("change", show);
  $("pair").addEventListener("submit", e => { e.preventDefault(); show(); });
  addEventListener("hashchange", read);
  read();
})();
