// Tells the server which results are opened, for the log of searches. Loaded only where
// there is one; nothing waits for it.

for (const type of ["click", "auxclick"]) {
  document.addEventListener(type, (event) => {
    const link = event.target.closest("#image-similarity-results .ims-picture, #image-similarity-results .ims-caption a");
    const results = link?.closest("[data-search]");
    if (!results || event.button > 1) return;
    const tile = link.closest("li");
    const rank = tile.parentElement.start + [...tile.parentElement.children].indexOf(tile);
    const pk = new URL(link.href).pathname.split("/").pop();
    const body = new URLSearchParams({ search: results.dataset.search, pk, rank });
    navigator.sendBeacon(results.dataset.clicks, body);
  });
}
