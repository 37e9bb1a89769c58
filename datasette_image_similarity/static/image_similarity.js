// Makes our pages quicker. Everything works without it.

document.documentElement.classList.add("ims-js");

// On a phone the list of pages is wider than the screen: show where one is.
const here = document.querySelector(".ims-pages [aria-current]");
if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.offsetLeft - 48;

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

// The histogram is made apart from the page: where that takes too long, go without.
for (const histogram of document.querySelectorAll(".ims-histogram")) {
  const check = () => (histogram.hidden = histogram.complete && !histogram.naturalWidth);
  histogram.addEventListener("error", check);
  check();
}

// Escape closes the forms that fold out.
document.addEventListener("keydown", (event) => {
  const open = event.key === "Escape" && event.target.closest(".ims-fold-out[open]");
  if (open) {
    open.open = false;
    open.querySelector("summary").focus();
  }
});

const search = document.getElementById("ims-search");
if (search) setUpSearch();

function setUpSearch() {
  const drop = document.getElementById("ims-drop");
  const preview = document.getElementById("ims-preview");
  const message = document.getElementById("ims-message");
  const status = document.getElementById("ims-status");
  const inputs = [...search.querySelectorAll("input[type=file]")];
  let asked = 0; // only the newest answer counts
  let latest = null; // what was asked last: { body, name }
  const answered = document.querySelector(".ims-next"); // without this script, or a next page
  if (answered) latest = { body: new FormData(answered), name: "your picture" };

  for (const input of inputs) {
    const take = () => {
      if (input.files[0]) choose(input.files[0]);
      input.value = ""; // so that the same file can be chosen again
    };
    input.addEventListener("change", take);
    take(); // a file may have been chosen before this script came
  }
  drop.addEventListener("click", (event) => {
    if (!event.target.closest("label, input, button")) inputs[0].click();
  });
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData?.files[0];
    if (file) choose(file);
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
    if (file) choose(file);
    else fail("That was not a file. Save the picture first, then drop the file.");
  });
  preview.addEventListener("error", () => (preview.hidden = true)); // a format browsers do not show

  // Filters and the cut-off ask again with the same picture.
  document.addEventListener("click", (event) => {
    const chip = event.target.closest("#image-similarity-results a.ims-chip");
    if (chip && latest) {
      event.preventDefault();
      ask(chip.href);
    }
  });
  document.addEventListener("submit", (event) => {
    if (event.target.closest(".ims-controls") && latest) {
      event.preventDefault();
      const url = new URL(event.target.action);
      url.search = new URLSearchParams(new FormData(event.target));
      ask(url.href);
    }
  });

  function choose(file) {
    if (file.size > Number(search.dataset.maxBytes)) {
      const megabytes = Number(search.dataset.maxBytes) / 1e6;
      return fail(`${file.name}: The file is too big: up to ${megabytes} MB are looked at`);
    }
    URL.revokeObjectURL(preview.src);
    preview.src = URL.createObjectURL(file);
    preview.hidden = false;
    const body = new FormData();
    body.append("image", file);
    latest = { body, name: file.name };
    const url = new URL(search.action); // stored pictures belonged to the one before
    for (const name of ["_like", "_unlike"]) url.searchParams.delete(name);
    ask(url.href);
  }

  function fail(text) {
    asked++;
    latest = null;
    preview.hidden = true;
    drop.classList.remove("ims-small");
    document.getElementById("image-similarity-results").replaceChildren();
    message.textContent = text;
    busy(false);
  }

  function busy(is, text = "") {
    document.body.classList.toggle("ims-busy", is);
    status.textContent = text;
  }

  async function ask(url) {
    const mine = ++asked;
    const { body, name } = latest;
    message.textContent = "";
    busy(true, `Looking for pictures like ${name} …`);
    let response, page;
    try {
      response = await fetch(url, { method: "POST", body, headers: { Accept: "text/html" } });
      page = new DOMParser().parseFromString(await response.text(), "text/html");
    } catch {
      return mine === asked && fail(`${name}: The server cannot be reached. Try again.`);
    }
    if (mine !== asked) return;
    if (response.redirected) return ask(response.url); // a new filter, in its final form
    const results = page.getElementById("image-similarity-results");
    const error = page.getElementById("ims-message")?.textContent;
    if (error || !results) {
      const said = error || page.querySelector("section.content p")?.textContent;
      return fail(`${name}: ${said || "The server could not answer."}`);
    }
    document.getElementById("image-similarity-results").replaceWith(document.adoptNode(results));
    const made = page.getElementById("ims-preview");
    if (preview.hidden && made?.getAttribute("src")) {
      preview.src = made.src;
      preview.hidden = false;
    }
    drop.classList.add("ims-small");
    search.action = url;
    history.replaceState(null, "", url);
    busy(false, results.querySelector(".ims-count")?.textContent.trim());
  }
}
