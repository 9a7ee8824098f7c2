// Every page with figures: on paper, and as a PDF, which is the browser's print to a file.
// paper is narrower than the screen, and a figure that is cut off cannot be scrolled there
(() => {
  const figures = () => [...document.querySelectorAll(".figure")].filter((div) => div.data);
  const size = (layout) => figures().forEach((div) => Plotly.relayout(div, layout));
  addEventListener("beforeprint", () => size({ width: 680, autosize: false }));
  addEventListener("afterprint", () => size({ width: null, autosize: true }));
  const button = Object.assign(document.createElement("button"), {
    type: "button", className: "print", textContent: "Print or save as PDF",
  });
  button.addEventListener("click", () => print());
  document.querySelector(".eyebrow")?.append(" ", button);
})();
