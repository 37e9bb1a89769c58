// Renames clusters in place. Without it the forms reload the page.

for (const rename of document.querySelectorAll(".ims-rename")) {
  const form = rename.querySelector("form");
  const input = form.elements.name;
  const said = form.querySelector(".ims-rename-said");

  rename.addEventListener("toggle", () => {
    if (rename.open) input.select();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    said.textContent = "";
    try {
      const answer = await fetch(form.action, {
        method: "POST",
        headers: { accept: "application/json" },
        body: new URLSearchParams(new FormData(form)),
      });
      const { ok, name, error } = await answer.json();
      if (!ok) throw new Error(error);
      show(name);
      close();
    } catch (error) {
      said.textContent = error.message;
    }
  });

  function show(name) {
    const cluster = rename.closest(".ims-cluster");
    cluster.querySelector("h2 a").textContent = name;
    input.value = input.defaultValue = name;
  }

  function close() {
    form.reset();
    said.textContent = "";
    rename.open = false;
    rename.querySelector("summary").focus();
  }
}
