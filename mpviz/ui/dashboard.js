// Names for controls inside shadow trees, and the arrow keys. Everything else is Python.
(() => {
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
  };
  const waiting = new Set(document.querySelectorAll("[data-label]"));
  const follow = () => {
    for (const field of waiting) {
      const control = deep(field, CONTROLS);
      if (!control) continue;
      waiting.delete(field);
      name(field, control);
      const tree = control.getRootNode(); // a control that changes is drawn anew in it
      new MutationObserver(() => {
        const again = tree.querySelector(CONTROLS);
        if (again) name(field, again);
      }).observe(tree, { childList: true, subtree: true });
    }
    if (waiting.size) setTimeout(follow, 200);
  };
  follow();

  document.addEventListener("keydown", (event) => {
    const side = { ArrowLeft: "previous", ArrowRight: "next" }[event.key];
    if (!side || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.composedPath()[0].matches?.("input, select, textarea, .noUi-handle")) return;
    deep(document, `.mpviz-${side}`)?.shadowRoot?.querySelector("button")?.click();
  });
})();
