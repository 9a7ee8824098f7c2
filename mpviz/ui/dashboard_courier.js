// Has no looks: what a menu of the page asks for goes to the server, and the file that comes back to the browser.
function render({ model }) {
  let times = 0;
  const ask = ({ detail }) => {
    times += 1;
    model.set("said", { ...detail, times });
    model.save_changes();
  };
  const file = (message) => message.kind === "file" && download(message);
  document.addEventListener("mpviz-take", ask);
  model.on("msg:custom", file);
  return () => {
    document.removeEventListener("mpviz-take", ask);
    model.off("msg:custom", file);
  };
}

export default { render };
