// Draws what the kernel last sent, whole, and only the newest of what came within a frame.

const plotlyOf = (key) => {
  globalThis[key] ??= {};
  const shelf = globalThis[key];
  shelf.ready ??= new Promise((resolve, reject) => Object.assign(shelf, { resolve, reject }));
  return shelf.ready;
};

export default {
  async render({ model, el }) {
    const page = document.createElement("div");
    page.className = "mpviz-plot";
    page.style.height = `${model.get("picture").layout?.height ?? 300}px`; // nothing moves when the figure arrives
    el.append(page);
    const Plotly = await plotlyOf(model.get("library"));

    const icons = Plotly.Icons;
    const picture = (format, scale) => (plot) => {
      const { clientWidth: width, clientHeight: height, layout } = plot;
      Plotly.downloadImage(plot, { format, scale, width, height, filename: layout.meta ?? "mpviz" });
    };
    let asked = false;
    const pageOfItsOwn = () => {
      asked = true;
      model.send({ want: "html" });
    };
    const given = model.get("_config") ?? {};
    const config = {
      ...given,
      modeBarButtonsToRemove: [...(given.modeBarButtonsToRemove ?? []), "toImage"],
      modeBarButtonsToAdd: [
        { name: "png", title: "Download as PNG", icon: icons.camera, click: picture("png", 2) },
        { name: "svg", title: "Download as SVG", icon: icons["camera-retro"], click: picture("svg", 1) },
        { name: "html", title: "Download as HTML, 5 MB, opens anywhere", icon: icons.disk, click: pageOfItsOwn },
      ],
    };
    const file = (message) => {
      if (message.kind !== "file" || !asked) return;
      asked = false;
      download(message);
    };
    model.on("msg:custom", file);

    let revision; // of the zoom that belongs to what is shown
    let waiting = 0;

    function draw() {
      waiting = 0;
      if (!page.isConnected || !page.clientWidth) return; // the observer below draws once there is room
      const { data, layout } = structuredClone(model.get("picture"));
      page.style.height = `${layout.height}px`;
      // a double click goes back to the range of the first drawing: another subject starts anew
      const anew = revision !== layout.uirevision;
      revision = layout.uirevision;
      const done = anew
        ? Plotly.newPlot(page, data, layout, config)
        : Plotly.react(page, data, layout, config);
      if (anew) done.then(listen);
    }

    function listen() {
      page.removeAllListeners?.("plotly_click");
      page.on("plotly_click", ({ points }) => {
        const of = (name) => points.map((point) => point[name]);
        const indexes = { point_indexes: of("pointNumber"), trace_indexes: of("curveNumber") };
        model.set("_js2py_pointsCallback", {
          event_type: "plotly_click",
          points: { xs: of("x"), ys: of("y"), ...indexes },
        });
        model.save_changes();
      });
    }

    const soon = () => (waiting ||= requestAnimationFrame(draw));
    const observer = new ResizeObserver(() => {
      if (revision === undefined) soon();
      else if (page.clientWidth && page._fullLayout) Plotly.Plots.resize(page);
    });
    observer.observe(page);
    model.on("change:picture", soon);
    soon();

    return () => {
      cancelAnimationFrame(waiting);
      observer.disconnect();
      model.off("change:picture", soon);
      model.off("msg:custom", file);
      Plotly.purge(page);
    };
  },
};
