// One copy of plotly.js for all figures of a page, and what the page looks like.
// `key` names the copy, so that notebooks whose kernels have other versions of plotly do not share it.

const shelfOf = (key) => {
  globalThis[key] ??= {};
  const shelf = globalThis[key];
  shelf.ready ??= new Promise((resolve, reject) => Object.assign(shelf, { resolve, reject }));
  return shelf;
};

async function load(key, source) {
  const shelf = shelfOf(key);
  if (shelf.loading || !source) return;
  shelf.loading = true;
  // the library's file is a CommonJS module; its global name is given back to whoever had it
  const before = globalThis.Plotly;
  const text = ["const module = { exports: {} };\n", source, "\nexport default module.exports;"];
  const url = URL.createObjectURL(new Blob(text, { type: "text/javascript" }));
  try {
    shelf.resolve((await import(url)).default);
  } catch (error) {
    shelf.reject(error);
  } finally {
    URL.revokeObjectURL(url);
    if (before === undefined) delete globalThis.Plotly;
    else globalThis.Plotly = before;
  }
}

function isDark() {
  const body = document.body;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false"; // JupyterLab
  const parts = getComputedStyle(body).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [];
  if (parts.length < 3 || parts[3] === 0) return false;
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] < 110;
}

export default {
  initialize({ model }) {
    load(model.get("key"), model.get("source"));
    const look = () => {
      if (model.get("dark") === isDark()) return;
      model.set("dark", isDark());
      model.save_changes();
    };
    const watcher = new MutationObserver(look);
    watcher.observe(document.body, { attributes: true, attributeFilter: ["class", "style", "data-jp-theme-light"] });
    look();
    return () => watcher.disconnect();
  },
};
