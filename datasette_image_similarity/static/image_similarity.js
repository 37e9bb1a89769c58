// Makes our pages quicker. Everything works without it.

document.documentElement.classList.add("ims-js");

// The cut-off: say where it stands while it moves, ask when it is let go.
document.addEventListener("input", (event) => {
  if (event.target.matches("#ims-max-distance")) {
    const { value, max, form } = event.target;
    form.querySelector("output").value = Number(value) >= Number(max) ? "any" : Number(value).toPrecision(2);
  }
});
document.addEventListener("change", (event) => {
  if (event.target.matches("#ims-max-distance")) {
    const { value, max, form } = event.target;
    event.target.disabled = Number(value) >= Number(max); // no cut-off, no parameter
    form.requestSubmit();
    event.target.disabled = false;
  }
});

const search = document.getElementById("ims-search");
if (search) setUpSearch();

function setUpSearch() {
  const drop = document.getElementById("ims-drop");
  const preview = document.getElementById("ims-preview");
  const message = document.getElementById("ims-message");
  let asked = 0; // only the newest answer counts
  let latest = null;

  for (const input of search.querySelectorAll("input[type=file]")) {
    input.addEventListener("change", () => input.files[0] && ask(input.files[0]));
  }
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (file) ask(file);
  });
  for (const type of ["dragenter", "dragover"]) {
    document.addEventListener(type, (event) => {
      event.preventDefault();
      drop.classList.add("ims-over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("ims-over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("ims-over");
    const file = event.dataTransfer?.files[0];
    if (file) ask(file);
    else tell("That was not a file. Save the picture first, then drop the file.");
  });
  search.addEventListener("submit", (event) => {
    event.preventDefault();
    const chosen = [...search.querySelectorAll("input[type=file]")].find((input) => input.files[0]);
    if (chosen) ask(chosen.files[0]);
    else tell("Choose a picture first.");
  });
  // Filters and the cut-off ask again with the same picture.
  document.addEventListener("click", (event) => {
    const chip = event.target.closest("#image-similarity-results a.ims-chip");
    if (chip && latest) {
      event.preventDefault();
      askAgain(chip.href);
    }
  });
  document.addEventListener("submit", (event) => {
    if (event.target.closest(".ims-controls") && latest) {
      event.preventDefault();
      const url = new URL(event.target.action);
      url.search = new URLSearchParams(new FormData(event.target)).toString();
      askAgain(url.href);
    }
  });

  function tell(text) {
    message.textContent = text;
  }

  function askAgain(url) {
    search.action = url;
    ask(latest);
  }

  async function ask(file) {
    const mine = ++asked;
    latest = file;
    tell("");
    URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.hidden = false;
    if (file.size > Number(search.dataset.maxBytes)) {
      preview.hidden = true;
      return tell(`${file.name} is too big: up to ${search.dataset.maxBytes / 1e6} MB are looked at.`);
    }
    document.body.classList.add("ims-busy");
    const body = new FormData();
    body.append("image", file);
    try {
      const response = await fetch(search.action, { method: "POST", body, headers: { Accept: "text/html" } });
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      if (mine !== asked) return;
      const results = page.getElementById("image-similarity-results");
      const said = page.getElementById("ims-message")?.textContent;
      if (!results) return tell(page.querySelector("section.content p")?.textContent || "The server could not answer.");
      document.getElementById("image-similarity-results").replaceWith(document.adoptNode(results));
      if (said) tell(`${file.name}: ${said}`);
      preview.hidden = Boolean(said);
      history.replaceState(null, "", response.url);
    } catch {
      if (mine === asked) tell("The server cannot be reached. Try again.");
    } finally {
      if (mine === asked) document.body.classList.remove("ims-busy");
    }
  }
}
