// The line "upload a checkpoint": one file, by POST, for the session of this page alone. What the server says of it
// stands in the page's alert; here only what never reached it.
for (const input of document.querySelectorAll("[data-upload]")) {
  const said = input.closest("label").querySelector("[role=status]");
  input.addEventListener("change", async () => {
    const file = input.files[0];
    if (!file) return;
    input.disabled = true;
    said.textContent = `sending ${file.name} …`;
    try {
      const answer = await fetch("upload", {
        method: "POST",
        headers: { "X-Mpviz-Visit": input.dataset.upload, "X-Mpviz-Name": encodeURIComponent(file.name) },
        body: file,
      });
      said.textContent = (await answer.json()).message;
    } catch {
      said.textContent = "The upload was broken off; the file may be larger than this server takes.";
    } finally {
      input.disabled = false;
      input.value = "";
    }
  });
}
