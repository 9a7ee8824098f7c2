// Names for controls inside shadow trees, keys, pictures of figures, and looks that the address asks for. All else is Python.
(() => {
  const asked = new URLSearchParams(location.search);
  if (asked.get("theme") === "dark") document.documentElement.dataset.theme = "dark";
  for (const [name, card] of [["lower", "budgets"], ["right", "coverage"]]) {
    const shown = asked.get(name);
    if (shown) document.querySelector(`.card.${card}`).dataset.shown = shown;
  }

  const CONTROLS = "input, select, textarea, button, .noUi-handle";
  const deep = (node, selector) => {
    const found = node.querySelector(selector);
    if (found) return found;
    for (const child of node.querySelectorAll("*")) {
      const inner = child.shadowRoot && deep(child.shadowRoot, selector);
      if (inner) return inner;
    }
    return null;
  };

  const name = (field, control) => {
    const group = control.closest(".bk-btn-group");
    const named = group && group.children.length > 1 ? group : control;
    if (named === group) group.setAttribute("role", "group");
    named.setAttribute("aria-label", field.dataset.label);
    for (const [way, words] of [["up", "more"], ["down", "fewer"]]) { // of a number: bokeh draws them without a word
      const step = control.getRootNode().querySelector(`.bk-spin-btn-${way}`);
      step?.setAttribute("aria-label", `${words} ${field.dataset.label}`);
    }
  };
  const explain = (field, control) => { // each of several buttons
    const tips = JSON.parse(field.dataset.tips ?? "{}");
    for (const button of control.closest(".bk-btn-group")?.children ?? []) button.title = tips[button.textContent] ?? "";
  };
  // A control that is disabled while something loads loses the focus; it gets it back, unless another one has it by then.
  let last = null;
  document.addEventListener("focusin", (event) => {
    last = event.composedPath().find((node) => node.dataset?.label !== undefined) ?? null;
  });
  const giveBack = (field, control) => {
    if (field === last && document.activeElement === document.body && !control.disabled) control.focus();
  };
  const waiting = new Set(document.querySelectorAll("[data-label]"));
  const follow = () => {
    for (const field of waiting) {
      const control = deep(field, CONTROLS);
      if (!control) continue;
      waiting.delete(field);
      name(field, control);
      if (field.dataset.tips) explain(field, control);
      const tree = control.getRootNode(); // a control that changes is drawn anew in it
      new MutationObserver(() => {
        const again = tree.querySelector(CONTROLS);
        if (!again) return;
        name(field, again);
        if (field.dataset.tips) explain(field, again);
        giveBack(field, again);
      }).observe(tree, { childList: true, subtree: true, attributeFilter: ["disabled"] });
    }
    if (waiting.size) setTimeout(follow, 200);
  };
  follow();

  const take = ({ take: named, form }, card) => {
    const what = card && named === "coverage" ? card.dataset.shown : named; // one menu for all figures of that card
    if (form !== "png" && form !== "svg") {
      document.dispatchEvent(new CustomEvent("mpviz-take", { detail: { what, form } }));
      return;
    }
    const faces = [...card.querySelectorAll(".face")].filter((face) => getComputedStyle(face).visibility === "visible");
    const plot = [...faces, card].map((place) => deep(place, ".js-plotly-plot")).find(Boolean);
    const { clientWidth: width, clientHeight: height, layout } = plot;
    const filename = layout.meta ?? what;
    Plotly.downloadImage(plot, { format: form, width, height, filename, scale: form === "png" ? 2 : 1 });
  };
  const menus = [...document.querySelectorAll(".take")];
  document.addEventListener("click", (event) => {
    const button = event.composedPath()[0].closest?.("[data-take]");
    if (button) take(button.dataset, button.closest(".card"));
    for (const menu of menus) if (button || !menu.contains(event.target)) menu.open = false;
  });

  const grow = (card, large) => {
    card.classList.toggle("large", large);
    card.querySelector(".grow").setAttribute("aria-pressed", large);
  };
  document.querySelectorAll(".grow").forEach((one) => one.addEventListener("click", ({ currentTarget: button }) => {
    const card = button.closest(".card");
    grow(card, !card.classList.contains("large"));
  }));

  document.querySelectorAll(".compare").forEach((one) => one.addEventListener("click", ({ currentTarget: link }) => {
    const seen = new URLSearchParams(location.search).get("model");
    const query = { theme: document.documentElement.dataset.theme ?? "light", ...(seen && { seen }) };
    link.search = new URLSearchParams(query);
  }));

  document.addEventListener("dblclick", (event) => {
    const field = event.composedPath().find((node) => node.dataset?.reset !== undefined);
    if (!field || !event.composedPath().some((node) => node.classList?.contains("noUi-target"))) return;
    document.dispatchEvent(new CustomEvent("mpviz-take", { detail: { what: field.dataset.reset, form: "reset" } }));
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      for (const menu of menus) menu.open = false;
      document.querySelectorAll(".card.large").forEach((card) => grow(card, false));
    }
    const typing = event.composedPath()[0].matches?.("input:not([type=checkbox], [type=radio]), textarea");
    if ((event.ctrlKey || event.metaKey) && !event.altKey && /^[zy]$/i.test(event.key) && !typing) {
      const what = event.shiftKey || /^y$/i.test(event.key) ? "redo" : "undo";
      document.dispatchEvent(new CustomEvent("mpviz-take", { detail: { what, form: "step" } }));
      event.preventDefault();
    }
    const side = { ArrowLeft: "previous", ArrowRight: "next" }[event.key];
    const held = last && document.activeElement === document.body && deep(last, CONTROLS)?.disabled;
    if (held) return; // the arrow was meant for a control that is waiting
    if (!side || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.composedPath()[0].matches?.("input, select, textarea, .noUi-handle")) return;
    deep(document, `.mpviz-${side}`)?.shadowRoot?.querySelector("button")?.click();
  });
})();
