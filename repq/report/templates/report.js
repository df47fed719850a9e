// The page is whole without this: it adds sorting by column and a filter above long tables.
"use strict";
const FILTER_FROM = 15;
const key = (row, index) => {
  const cell = row.cells[index];
  return cell.dataset.sort === undefined ? cell.textContent : Number(cell.dataset.sort);
};
const order = (a, b) => {
  const absent = (value) => value === "–" || value === "" || Number.isNaN(value);
  if (absent(a.key) || absent(b.key)) return absent(a.key) - absent(b.key); // what was not measured stays last
  const both = typeof a.key === "number" && typeof b.key === "number";
  return a.sign * (both ? a.key - b.key : String(a.key).localeCompare(String(b.key), "en", { numeric: true }));
};
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.dataset.title = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => ({ row, sign, key: key(row, index) }));
      body.append(...rows.sort(order).map((item) => item.row));
    });
  });
  if (body.rows.length < FILTER_FROM) continue;
  const filter = document.createElement("input");
  filter.type = "search";
  filter.className = "filter";
  filter.placeholder = "Filter rows";
  filter.setAttribute("aria-label", "Filter rows");
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase();
    for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
  table.parentElement.before(filter);
}
const folded = [...document.querySelectorAll("details:not([open])")]; // paper has no folds
addEventListener("beforeprint", () => folded.forEach((fold) => (fold.open = true)));
addEventListener("afterprint", () => folded.forEach((fold) => (fold.open = false)));
