// A sortable table with one selected row. Every word is set as text, never as HTML.
// The kernel or server sends columns once, cells when the network changes and `live`, the few columns that follow a
// slider; the page answers with `said`: a row that was picked, a button that was pressed, a file that is wanted.

const MARKS = { good: "● ", fair: "▼ ", poor: "▲ ", none: "" };
const FIRST = { number: "descending", bar: "descending", badge: "descending", lock: "descending" };

const make = (tag, name, words) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (words !== undefined) node.textContent = words;
  return node;
};

const SVG = "http://www.w3.org/2000/svg";
const SHACKLE = { locked: "M5 7V5a3 3 0 0 1 6 0v2", open: "M5 7V4a3 3 0 0 1 6-.6" };

function padlock(state) {
  const icon = document.createElementNS(SVG, "svg");
  icon.setAttribute("viewBox", "0 0 16 16");
  icon.setAttribute("aria-hidden", "true");
  for (const [d, fill] of [["M3.5 7h9v6.5h-9z", "currentColor"], [SHACKLE[state], "none"]]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("d", d);
    path.setAttribute("fill", fill);
    path.setAttribute("stroke", "currentColor");
    path.setAttribute("stroke-width", "1.6");
    icon.append(path);
  }
  return icon;
}

function render({ model, el }) {
  const root = make("div", "mpviz-rows");
  root.dataset.lmSuppressShortcuts = "true"; // the arrow keys are ours, not JupyterLab's
  const scroller = make("div", "scroller");
  const table = make("table");
  const head = make("thead");
  const body = make("tbody");
  const empty = make("p", "empty");
  const foot = make("div", "foot");
  const count = make("span");
  foot.append(count);
  table.setAttribute("role", "grid");
  table.append(head, body);
  scroller.append(table, empty);
  root.append(scroller, foot);
  el.append(root);

  let sorted = null; // { name, direction }; null: the order that the rows came in
  let rows = new Map(); // key → { line, cells: {column: td} }
  let focused = null;
  let asked = false;
  let times = 0;

  const column = (name) => ({ ...model.get("cells"), ...model.get("live") })[name];
  const say = (what, row = "") => {
    times += 1;
    model.set("said", { what, row, times: `${Date.now()} ${times}` });
    model.save_changes();
  };

  for (const [format, tip] of [["CSV", "Comma-separated text"], ["Parquet", "For pandas, polars, DuckDB"]]) {
    const button = make("button", "", format);
    button.type = "button";
    button.title = `Take this table away: ${tip}`;
    button.onclick = () => {
      asked = true;
      say(format.toLowerCase());
    };
    foot.append(button);
  }

  function fill(cell, kind, data, i) {
    const words = data.text[i];
    if (data.tip) cell.title = data.tip[i];
    if (kind === "lock") {
      const state = data.state[i];
      let button = cell.firstChild;
      if (state === "none") return void cell.replaceChildren();
      if (!button) {
        button = make("button", "lock");
        button.type = "button";
        button.tabIndex = -1;
        cell.append(button);
      }
      if (button.dataset.state !== state) button.replaceChildren(padlock(state));
      button.dataset.state = state;
      button.setAttribute("aria-pressed", String(state === "locked"));
      button.setAttribute("aria-label", data.tip[i]);
    } else if (kind === "picture") {
      if (!words.startsWith("data:image/png;base64,")) return void cell.replaceChildren();
      const image = make("img");
      image.src = words;
      image.alt = data.tip?.[i] ?? "";
      cell.replaceChildren(image);
    } else if (kind === "badge") {
      const state = data.state[i];
      cell.dataset.state = state;
      cell.textContent = MARKS[state] + words;
    } else {
      if (cell.textContent !== words) cell.textContent = words;
      if (kind === "bar") cell.style.setProperty("--share", `${(100 * data.share[i]).toFixed(1)}%`);
    }
  }

  function drawHead() {
    const line = make("tr");
    for (const { name, title, tip, kind } of model.get("columns")) {
      const cell = make("th", kind);
      cell.scope = "col";
      cell.dataset.column = name;
      if (!title) {
        cell.title = tip;
        line.append(cell);
        continue;
      }
      const button = make("button", "", title);
      button.type = "button";
      button.title = `${tip}\n\nClick to sort`;
      button.onclick = () => sortBy(name, kind);
      cell.append(button);
      line.append(cell);
    }
    head.replaceChildren(line);
    sayOrder();
  }

  function drawBody() {
    const keys = model.get("ids");
    const columns = model.get("columns");
    const fragment = document.createDocumentFragment();
    const hadFocus = root.getRootNode().activeElement?.dataset?.key;
    rows = new Map();
    keys.forEach((key, i) => {
      const line = make("tr");
      line.dataset.key = key;
      line.tabIndex = -1;
      const cells = {};
      for (const { name, kind } of columns) {
        const cell = make(kind === "head" ? "th" : "td", kind);
        if (kind === "head") cell.scope = "row";
        cell.dataset.column = name;
        const data = column(name);
        if (data && i < data.text.length) fill(cell, kind, data, i);
        cells[name] = cell;
        line.append(cell);
      }
      rows.set(key, { line, cells, at: i });
      fragment.append(line);
    });
    body.replaceChildren(fragment);
    empty.textContent = keys.length ? "" : model.get("empty");
    table.hidden = !keys.length;
    count.textContent = `${keys.length} ${keys.length === 1 ? model.get("unit") : `${model.get("unit")}s`}`;
    foot.hidden = !keys.length;
    order();
    select();
    if (hadFocus && rows.has(hadFocus)) rows.get(hadFocus).line.focus({ preventScroll: true });
  }

  function patch() {
    const kinds = Object.fromEntries(model.get("columns").map(({ name, kind }) => [name, kind]));
    for (const [name, data] of Object.entries(model.get("live"))) {
      for (const { cells, at } of rows.values()) if (at < data.text.length) fill(cells[name], kinds[name], data, at);
    }
    if (sorted && sorted.name in model.get("live")) order();
  }

  function sortBy(name, kind) {
    const first = FIRST[kind] ?? "ascending";
    const other = first === "ascending" ? "descending" : "ascending";
    const now = sorted?.name === name ? sorted.direction : null;
    sorted = now === null ? { name, direction: first } : now === first ? { name, direction: other } : null;
    sayOrder();
    order();
  }

  function sayOrder() {
    for (const cell of head.querySelectorAll("th")) {
      const here = sorted?.name === cell.dataset.column;
      cell.setAttribute("aria-sort", here ? sorted.direction : "none");
    }
  }

  function order() {
    const lines = [...rows.values()].sort((a, b) => a.at - b.at);
    if (sorted) {
      const sort = column(sorted.name).sort;
      const sign = sorted.direction === "ascending" ? 1 : -1;
      lines.sort((a, b) => {
        const [x, y] = [sort[a.at], sort[b.at]];
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
      });
    }
    const inPlace = lines.every(({ line }, i) => body.children[i] === line);
    if (!inPlace) {
      const focus = root.getRootNode().activeElement;
      body.append(...lines.map(({ line }) => line));
      if (focus && body.contains(focus)) focus.focus({ preventScroll: true });
    }
  }

  function select() {
    const selected = model.get("selected");
    for (const [key, { line }] of rows) {
      const here = key === selected;
      line.setAttribute("aria-selected", String(here));
      line.tabIndex = here ? 0 : -1;
    }
    const row = rows.get(selected);
    if (!row && body.firstChild) body.firstChild.tabIndex = 0;
    if (row) show(row.line);
  }

  // scrollIntoView would move the page as well
  function show(line) {
    const top = line.offsetTop - head.offsetHeight;
    const bottom = line.offsetTop + line.offsetHeight;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (bottom > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = bottom - scroller.clientHeight;
  }

  function focus(line) {
    if (!line) return;
    for (const { line: other } of rows.values()) other.tabIndex = -1;
    line.tabIndex = 0;
    line.focus({ preventScroll: true });
    show(line);
  }

  body.addEventListener("click", (event) => {
    const line = event.target.closest("tr");
    if (!line) return;
    if (event.target.closest("button.lock")) return say("lock", line.dataset.key);
    focus(line);
    say("pick", line.dataset.key);
  });
  body.addEventListener("keydown", (event) => {
    const line = event.target.closest("tr");
    if (!line || event.ctrlKey || event.metaKey || event.altKey) return;
    const { previousElementSibling: before, nextElementSibling: after } = line;
    const moves = { ArrowUp: before, ArrowDown: after, Home: body.firstChild, End: body.lastChild };
    if (event.key in moves) focus(moves[event.key]);
    else if (event.key === "Enter" || event.key === " ") say("pick", line.dataset.key);
    else if (event.key.toLowerCase() === "l" && line.querySelector("button.lock")) say("lock", line.dataset.key);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  // what comes together is drawn once
  let frame = 0;
  let all = false;
  const soon = (everything) => () => {
    all ||= everything;
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      if (all) drawBody();
      else patch();
      all = false;
    });
  };
  const file = (message) => {
    if (message.kind !== "file" || !asked) return;
    asked = false;
    download(message);
  };
  const size = () => {
    const height = model.get("tall");
    root.style.height = height ? `${height}px` : "100%";
    if (!height) el.style.height = "100%";
  };
  const name = () => table.setAttribute("aria-label", model.get("label"));
  const follow = {
    "change:ids": soon(true),
    "change:cells": soon(true),
    "change:live": soon(false),
    "change:selected": select,
    "change:label": name,
    "change:tall": size,
    "msg:custom": file,
  };
  for (const [what, react] of Object.entries(follow)) model.on(what, react);
  drawHead();
  drawBody();
  size();
  name();
  const first = new ResizeObserver(() => {
    if (!scroller.clientHeight) return; // not on the page yet
    first.disconnect();
    select();
  });
  first.observe(scroller);
  return () => {
    first.disconnect();
    cancelAnimationFrame(frame);
    for (const [what, react] of Object.entries(follow)) model.off(what, react);
  };
}

export default { render };
