// Has no looks: what a menu of the page asks for goes to the server; files that come back go to the browser, and what is
// set to its address, so that a reload and a copied link show the same.
function render({ model }) {
  let times = 0;
  const ask = ({ detail }) => {
    times += 1;
    model.set("said", { ...detail, times });
    model.save_changes();
  };
  let waiting = 0;
  const answer = (message) => {
    if (message.kind === "file") download(message);
    if (message.kind !== "address") return;
    clearTimeout(waiting); // browsers refuse too many changes in a row
    waiting = setTimeout(() => history.replaceState(history.state, "", message.search), 250);
  };
  document.addEventListener("mpviz-take", ask);
  model.on("msg:custom", answer);
  return () => {
    document.removeEventListener("mpviz-take", ask);
    model.off("msg:custom", answer);
    clearTimeout(waiting);
  };
}

export default { render };
